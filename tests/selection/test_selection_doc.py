"""docs/selection.md and the examples in docstrings: they run, and say what is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import pxfast.selection

PAGE = Path(__file__).resolve().parents[2] / "docs" / "selection.md"
MODULES = [
    module.name for module in pkgutil.walk_packages(pxfast.selection.__path__, "pxfast.selection.")
]


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.M)
    assert len(blocks) > 10
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    names = {"torch": torch, "nn": torch.nn}
    result = doctest.testmod(module, extraglobs=names)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = map(importlib.import_module, MODULES)
    assert sum(bool(test.examples) for module in modules for test in finder.find(module)) >= 6
