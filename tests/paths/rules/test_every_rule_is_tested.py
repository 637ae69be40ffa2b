"""Every registered function is in some table of this folder."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from middles import behind, network
from nets import random_batch
from torch import Tensor

import pxfast
from pxfast.paths import registry

# Functions that no table reaches, and why.
OPERATORS = "operators and some aliases arrive as the method that they are: x + y as Tensor.add"
IN_PYTHON = "written in Python, it calls another function that has a rule"
ERRORS = "its rule only raises: test_rule_metadata, test_rule_pooling, test_rule_arithmetic"
NO_GPU = "needs a GPU"
EXCEPTIONS: dict[Any, str] = {
    **{
        getattr(Tensor, f"__{name}__"): OPERATORS
        for name in (
            "add", "radd", "iadd", "sub", "isub", "mul", "rmul", "imul", "truediv", "itruediv",
            "ipow", "matmul", "rmatmul", "lt", "le", "gt", "ge", "ne", "int",
            "bool",
        )
    },
    Tensor.nelement: OPERATORS,
    Tensor.ndimension: OPERATORS,
    F.sigmoid: IN_PYTHON,
    F.tanh: IN_PYTHON,
    F.upsample: IN_PYTHON,
    torch.is_tensor: IN_PYTHON,
    **dict.fromkeys((F.lp_pool1d, F.lp_pool2d, F.lp_pool3d), ERRORS),
    **dict.fromkeys((Tensor.backward, Tensor.register_hook, Tensor.retain_grad), ERRORS),
    Tensor.__hash__: IN_PYTHON,
    Tensor.__repr__: IN_PYTHON,
    Tensor.cuda: NO_GPU,
}  # fmt: skip


def tables() -> list[Any]:
    """The modules test_rule_*.py beside this file."""
    modules = []
    for path in sorted(Path(__file__).parent.glob("test_rule_*.py")):
        spec = importlib.util.spec_from_file_location(f"table_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        modules.append(module)
    return modules


def reached(modules: list[Any], monkeypatch: Any) -> set[Any]:
    """The functions whose rules the tables use."""
    seen: set[Any] = set()
    find = registry.find

    def spy(function: Any) -> Any:
        seen.add(function)
        return find(function)

    monkeypatch.setattr(registry, "find", spy)
    for module in modules:
        for case in getattr(module, "CASES", {}).values():
            model = network(case.build, case.shape, 1)
            x = random_batch(model.inputs, 2).double()
            pxfast.score(model, x, criterion="px-joint", **case.options)
        for call in getattr(module, "CALLS", {}).values():
            behind(lambda x, call=call: (call(x), x)[1], torch.linspace(-2, 3, 12).view(3, 4))
    return seen


def test_every_rule_is_in_a_table(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = reached(tables(), monkeypatch)
    known = {
        f for f, entry in registry._RULES.items() if entry.rule.__module__.startswith("pxfast.")
    }
    missing = [torch.overrides.resolve_name(f) or repr(f) for f in known - seen - set(EXCEPTIONS)]
    assert not missing, " ".join(sorted(missing))
    assert not [f for f in EXCEPTIONS if f in seen or f not in known]
