"""What holds for every adapter: its files, its extra, its row of the table, its example."""

from __future__ import annotations

import doctest
import importlib.metadata
import os
import re
import subprocess
import sys

import pytest
import torch
from integrations.matrix import MARKED, MATRIX, PAGE, ROOT, Row, pinned, table
from libraries import library

import pxfast

EACH = pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.adapter)
FOREIGN = [row for row in MATRIX if row.extra]
# Libraries that use torchvision where they find it, also one whose operators do not load.
LOADED = "import runpy; from bench._libraries import load; load('math')"


def extras() -> dict[str, str]:
    """The extras of pyproject.toml, each with its packages as they stand there."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    return dict(re.findall(r"^([\w-]+) = \[(.*?)\]$", section, re.DOTALL | re.MULTILINE))


def python(*arguments: str, block: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own, in which some modules are not installed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if block:
        hide = "".join(f"sys.modules[{name!r}] = None; " for name in block)
        arguments = ("-c", f"import sys; {hide}{arguments[1]}")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_table_of_the_page_is_the_matrix():
    text = PAGE.read_text(encoding="utf-8")
    assert MARKED.findall(text) == [table()], "run make tables"


def test_a_change_of_the_matrix_is_seen():
    other = (MATRIX[0]._replace(cannot="something else"), *MATRIX[1:])
    assert MARKED.findall(PAGE.read_text(encoding="utf-8")) != [table(other)]


def test_every_adapter_is_in_the_matrix():
    assert {row.adapter for row in MATRIX} == set(pxfast.integrations.ADAPTERS)


@EACH
def test_every_adapter_has_its_files(row: Row):
    for name in ("tests/integrations/test_in_{}.py", "examples/in_{}.py"):
        assert (ROOT / name.format(row.adapter)).is_file()


@EACH
def test_the_version_of_the_table_is_the_one_that_is_tested(row: Row):
    for module in row.modules:
        library(module)
    for package in row.packages:
        installed = importlib.metadata.version(package).partition("+")[0]
        if set(row.modules) & set(os.environ.get("PXFAST_REQUIRE", "").split(",")):
            assert installed == pinned()[package]


@EACH
def test_the_example_runs(row: Row):
    for module in row.modules:
        library(module)
    run = python(
        "-c", f"{LOADED}; runpy.run_path('examples/in_{row.adapter}.py', None, '__main__')"
    )
    assert run.returncode == 0, run.stderr


@EACH
def test_the_examples_in_the_docstrings_run(row: Row):
    for module in row.modules:
        library(module)
    adapter = getattr(pxfast.integrations, row.adapter)
    names = {"torch": torch, "nn": torch.nn, "Tensor": torch.Tensor}
    result = doctest.testmod(adapter, extraglobs=names)
    assert result.failed == 0


@pytest.mark.parametrize("row", FOREIGN, ids=lambda row: row.adapter)
def test_an_extra_installs_the_library(row: Row):
    for package in row.packages:
        assert f'"{package}' in extras()[row.extra]
    assert row.extra in extras()["integrations"]


@pytest.mark.parametrize("row", FOREIGN, ids=lambda row: row.adapter)
def test_a_missing_library_gives_one_line_that_names_the_extra(row: Row):
    code = f"import pxfast; pxfast.integrations.{row.adapter}"
    run = python("-c", code, block=row.modules)
    assert run.returncode == 1
    message = run.stderr.strip().splitlines()[-1]
    assert message.startswith("pxfast.errors.MissingPackageError: ")
    assert message.endswith(f"is not installed: pip install 'pxfast[{row.extra}]'")


def test_pxfast_imports_none_of_the_libraries():
    names = sorted({module for row in FOREIGN for module in row.modules})
    run = python("-c", f"import sys, pxfast; print([n for n in {names} if n in sys.modules])")
    assert run.stdout.strip() == "[]", run.stderr


def test_an_adapter_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_library'"):
        _ = pxfast.integrations.no_such_library
