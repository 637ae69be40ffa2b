"""gate as an op of torch: gradients, in place, opcheck, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import Backend
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pxfast import ops
from pxfast.reference.gate import GATES

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def arguments(dtype: torch.dtype = F32, device: Any = "cpu", **changed: Any) -> dict[str, Any]:
    """Arguments of the op, by name."""
    torch.manual_seed(0)
    z = torch.randn(2, 3, 4, device=device).to(dtype)
    path = torch.rand(2, 1, 4, dtype=F64 if dtype == F64 else F32, device=device)
    given = {"z": z, "path": path, "kind": "elu", "a": 0.5, "b": 0.0, "value": torch.empty_like(z)}
    return {**given, **changed}


@pytest.mark.parametrize("narrow", [(2, 3, 4), (2, 1, 4), (1, 1, 1), (2, 3, 1)], ids=str)
def test_gradients_to_the_second_order(device: torch.device, narrow: tuple[int, ...]):
    z = torch.randn(2, 3, 4, dtype=F64, device=device)
    path = torch.rand(narrow, dtype=F64, device=device, requires_grad=True)
    assert gradcheck(lambda p: ops.gate(z, p, "silu")[1], (path,))
    assert gradgradcheck(lambda p: ops.gate(z, p, "silu")[1], (path,))


def test_a_gradient_by_z_is_refused():
    z = torch.randn(3, requires_grad=True)
    with pytest.raises(ValueError, match="z must not require grad, the gate is data"):
        ops.gate(z, torch.ones(3), "relu")


def test_in_place(device: torch.device):
    z, path = torch.randn(3, 20, device=device), torch.rand(3, 1, device=device)
    expected, version = ops.gate(z, path, "gelu"), z._version
    value, gated = ops.gate(z, path, "gelu", inplace=True)
    assert value is z and z._version > version
    assert torch.equal(value, expected[0]) and torch.equal(gated, expected[1])


def test_in_place_on_every_other_column(device: torch.device):
    wide = torch.randn(3, 20, device=device)
    before, z = wide.clone(), wide[:, ::2]
    expected = ops.gate(z.clone(), torch.ones(1, 1, device=device), "silu")[0]
    ops.gate(z, torch.ones(1, 1, device=device), "silu", inplace=True)
    assert torch.equal(wide[:, ::2], expected) and torch.equal(wide[:, 1::2], before[:, 1::2])


def test_what_was_overwritten_cannot_be_differentiated():
    z, path = torch.randn(3), torch.rand(3, requires_grad=True)
    gated = ops.gate(z, path, "gelu", inplace=True)[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gated.sum().backward()


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_opcheck(device: torch.device, dtype: torch.dtype):
    given = arguments(dtype, device)
    torch.library.opcheck(torch.ops.pxfast.gate, (), given)
    torch.library.opcheck(torch.ops.pxfast.gate, (), given | {"value": None})


@pytest.mark.parametrize("name", ["z", "path", "kind", "a", "b", "value"])
def test_every_argument_arrives(backend: Backend, name: str):
    """torch does not compare the arguments of a kernel on its stable ABI with the schema."""
    given = arguments(kind="hardtanh", a=-0.5, b=0.5)
    expected = backend("gate", *given.values())
    value = given["value"].clone()
    assert not torch.equal(value, given["z"])
    other = {"z": given["z"] + 1, "path": given["path"] + 1, "kind": "relu", "a": -0.1, "b": 0.1}
    if name == "value":
        assert torch.equal(backend("gate", *(given | {"value": None}).values()), expected)
    else:
        assert not torch.equal(backend("gate", *(given | {name: other[name]}).values()), expected)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "z_dtype": (
        {"z": torch.ones(2, 3, 4, dtype=torch.int64)},
        "z must be float32, float64, bfloat16 or float16, got int64",
    ),
    "path_dims": (
        {"path": torch.ones(4)},
        "path must have z's shape [2, 3, 4], or 1 in some dimensions, got [4]",
    ),
    "path_shape": (
        {"path": torch.ones(2, 3, 2)},
        "path must have z's shape [2, 3, 4], or 1 in some dimensions, got [2, 3, 2]",
    ),
    "path_dtype": (
        {"path": torch.ones(2, 3, 4, dtype=F64)},
        "path must be float32 where z is float32, got float64",
    ),
    "value_shape": (
        {"value": torch.ones(2, 3)},
        "value must have z's shape [2, 3, 4], got [2, 3]",
    ),
    "value_dtype": (
        {"value": torch.ones(2, 3, 4, dtype=F64)},
        "value must have z's dtype float32, got float64",
    ),
    "kind": (
        {"kind": "rule"},
        f"kind must be one of {', '.join(GATES)}, got 'rule'",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gives_the_same_error_everywhere(backend: Backend, bad: str):
    if backend.device == "emulated":
        return  # checks are the binding's, which it goes around
    changed, message = BAD[bad]
    given = arguments(**changed)
    meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in given.items()}
    calls: list[Callable[[], Any]] = [
        lambda: backend("gate", *given.values()),
        lambda: torch.ops.pxfast.gate(**meta),
    ]
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f"gate: {message}"


@pytest.mark.parametrize("name", ["path", "value"])
def test_bad_device_of_gate(name: str):
    given = arguments(device="meta")
    given[name] = torch.empty_like(given[name], device="cpu")
    with pytest.raises(ValueError, match=f"{name} must be on z's device meta, got cpu"):
        torch.ops.pxfast.gate(**given)
