"""squared_linear as an op of torch: gradients, opcheck, bad input, memory, life without kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import Backend, instruction_set, need
from tolerances import sum_of_products
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import pxfast
from pxfast import _native, ops
from pxfast.ops.squared_linear import matmul_precision

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def arguments(
    T: int, O: int, K: int, dtype: torch.dtype = F32, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Arguments of squared_linear_backward, by name."""
    torch.manual_seed(0)
    path = F64 if dtype == F64 else F32
    return {
        "dy": torch.rand(T, O, dtype=path, device=device),
        "x": torch.rand(T, K, dtype=path, device=device),
        "weight": torch.randn(O, K, device=device).to(dtype),
        "mask": torch.rand(O, K, device=device) < 0.7,
        "saliency": torch.rand(O, K, dtype=path, device=device),
    }


# ---- gradients


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (10, 3, 4), (1, 1, 1)])
def test_gradients_to_the_second_order(
    device: torch.device, shape: tuple[int, int, int], masked: bool
):
    a = arguments(*shape, F64, device)
    x, weight = a["x"].requires_grad_(), a["weight"].requires_grad_()
    mask = a["mask"] if masked else None
    assert gradcheck(lambda x, w: ops.squared_linear(x, w, mask), (x, weight))
    assert gradgradcheck(lambda x, w: ops.squared_linear(x, w, mask), (x, weight))


@pytest.mark.parametrize("needed", [("x",), ("weight",), ("x", "weight")])
def test_gradients_are_made_for_what_needs_them(device: torch.device, needed: tuple[str, ...]):
    a = arguments(4, 6, 5, F32, device)
    for name in needed:
        a[name].requires_grad_()
    y = ops.squared_linear(a["x"], a["weight"], a["mask"])
    y.backward(a["dy"])
    squared = a["weight"].double() ** 2 * a["mask"]
    exact = {
        "x": a["dy"].double() @ squared,
        "weight": 2 * (a["dy"].double().T @ a["x"].double()) * a["weight"] * a["mask"],
    }
    for name in ("x", "weight"):
        grad = a[name].grad
        if name not in needed:
            assert grad is None
            continue
        bound = sum_of_products(6, F32) * exact[name].abs()
        assert ((grad.double() - exact[name]).abs() <= bound).all()


def test_gradient_of_a_bfloat16_weight_is_bfloat16():
    a = arguments(4, 6, 5, BF16)
    ops.squared_linear(a["x"], a["weight"].requires_grad_()).sum().backward()
    assert a["weight"].grad is not None and a["weight"].grad.dtype == BF16


def test_a_masked_weight_that_holds_nan_gets_no_gradient():
    a = arguments(4, 6, 5)
    weight = a["weight"].where(a["mask"], torch.nan).requires_grad_()
    ops.squared_linear(a["x"], weight, a["mask"]).sum().backward()
    assert weight.grad is not None and (weight.grad[~a["mask"]] == 0).all()
    assert (weight.grad[a["mask"]] != 0).all()


def test_saliency_is_weight_times_half_its_gradient(device: torch.device):
    a = arguments(4, 6, 5, F64, device)
    weight = a["weight"].clone().requires_grad_()
    ops.squared_linear(a["x"], weight, a["mask"]).backward(a["dy"])
    saliency = torch.zeros_like(weight)
    ops.squared_linear_backward(a["dy"], a["x"], a["weight"], a["mask"], saliency)
    assert weight.grad is not None
    torch.testing.assert_close(saliency, weight.detach() * weight.grad / 2)


def test_without_gradients_no_graph_is_made():
    a = arguments(2, 3, 4)
    assert ops.squared_linear(a["x"], a["weight"]).grad_fn is None
    with torch.no_grad():
        assert ops.squared_linear(a["x"].requires_grad_(), a["weight"]).grad_fn is None


# ---- torch's own checks of an op: schema, fake tensors, dynamic shapes


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_opcheck(device: torch.device, dtype: torch.dtype, masked: bool):
    a = arguments(3, 5, 7, dtype, device)
    mask = a["mask"] if masked else None
    torch.library.opcheck(torch.ops.pxfast.squared_linear, (a["x"], a["weight"], mask))
    for with_dx in (False, True):
        for add in (False, True):
            args = (a["dy"], a["x"], a["weight"], mask, a["saliency"], with_dx, add, "high")
            torch.library.opcheck(torch.ops.pxfast.squared_linear_backward, args)


def test_every_argument_of_every_op_arrives(backend: Backend):
    """torch does not compare the arguments of a kernel on its stable ABI with the schema."""
    a = arguments(3, 5, 7, F64)
    given = {
        "squared_linear": [a["x"], a["weight"], a["mask"], "highest"],
        "squared_linear_backward": [*a.values(), True, True, "highest"],
    }
    declared = {
        name.removeprefix("pxfast::"): len(schema.arguments)
        for schema in torch._C._jit_get_all_schemas()
        if (name := schema.name).startswith("pxfast::squared_linear") and schema.arguments
    }
    assert {name: len(args) for name, args in given.items()} == declared
    for name, args in given.items():
        expected = backend(name, *args)
        for i, argument in enumerate(args):
            if isinstance(argument, Tensor) and argument is not a["saliency"]:
                changed = ~argument if argument.dtype == torch.bool else argument + 1
                other = backend(name, *args[:i], changed, *args[i + 1 :])
                if not (name == "squared_linear_backward" and argument is a["x"]):
                    assert not torch.equal(other, expected), f"{name}: argument {i} has no effect"


# ---- precision: torch's own setting


@pytest.fixture
def settings_of_torch() -> Iterator[None]:
    """Puts torch's precision back."""
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


def precisions_passed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the ops are given from here on."""
    passed: list[str] = []
    for name in ("squared_linear", "squared_linear_backward"):
        op = getattr(torch.ops.pxfast, name)
        spy = lambda *args, op=op: passed.append(args[-1]) or op(*args)  # noqa: E731
        monkeypatch.setattr(torch.ops.pxfast, name, spy)
    return passed


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_is_the_one_that_torch_is_asked_for(
    precision: str, monkeypatch: pytest.MonkeyPatch, settings_of_torch: None
):
    a, passed = arguments(2, 3, 4), precisions_passed(monkeypatch)
    torch.set_float32_matmul_precision(precision)
    ops.squared_linear(a["x"], a["weight"])
    ops.squared_linear_backward(**a)
    ops.squared_linear(a["x"].requires_grad_(), a["weight"]).sum().backward()
    assert passed == [precision] * 4


def test_the_newer_setting_of_torch(settings_of_torch: None):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert matmul_precision() == "high"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert matmul_precision() == "highest"


def test_compiled_code_keeps_all_digits(settings_of_torch: None):
    a = arguments(2, 3, 4)
    torch.set_float32_matmul_precision("medium")
    compiled = torch.compile(lambda x, w: ops.squared_linear(x, w), backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(a["x"], a["weight"]), ops.squared_linear(a["x"], a["weight"])
    )


# ---- bad input: the same error in Python and from every kernel

BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "weight_shape": (
        lambda a: a.update(weight=torch.ones(4)),
        "weight must have shape [O, K], got [4]",
    ),
    "weight_dtype": (
        lambda a: a.update(weight=torch.ones(3, 4, dtype=torch.int64)),
        "weight must be float32, float64, bfloat16 or float16, got int64",
    ),
    "x_shape": (
        lambda a: a.update(x=torch.ones(2, 3)),
        "x must have shape [..., 4], got [2, 3]",
    ),
    "x_scalar": (
        lambda a: a.update(x=torch.ones(())),
        "x must have shape [..., 4], got []",
    ),
    "x_dtype": (
        lambda a: a.update(weight=a["weight"].to(BF16), x=a["x"].to(BF16)),
        "x must be float32 where weight is bfloat16, got bfloat16",
    ),
    "x_dtype_f64": (
        lambda a: a.update(weight=a["weight"].to(F64)),
        "x must be float64 where weight is float64, got float32",
    ),
    "mask_shape": (
        lambda a: a.update(mask=torch.ones(4, 3, dtype=torch.bool)),
        "mask must have weight's shape [3, 4], got [4, 3]",
    ),
    "mask_dtype": (
        lambda a: a.update(mask=torch.ones(3, 4)),
        "mask must be bool, got float32",
    ),
}
BAD_BACKWARD = {
    "dy_shape": (
        lambda a: a.update(dy=torch.ones(2, 4)),
        "dy must have shape [2, 3], got [2, 4]",
    ),
    "dy_dtype": (
        lambda a: a.update(dy=torch.ones(2, 3, dtype=F64)),
        "dy must be float32 where weight is float32, got float64",
    ),
    "saliency_shape": (
        lambda a: a.update(saliency=torch.ones(3)),
        "saliency must have weight's shape [3, 4], got [3]",
    ),
    "saliency_dtype": (
        lambda a: a.update(saliency=torch.ones(3, 4, dtype=torch.complex64)),
        "saliency must be float32 where weight is float32, got complex64",
    ),
}


@pytest.mark.parametrize("bad", [*BAD, *BAD_BACKWARD])
def test_bad_input_gives_the_same_error_everywhere(backend: Backend, bad: str):
    if backend.device == "emulated":
        return  # checks are the binding's, which it goes around
    spoil, message = (BAD | BAD_BACKWARD)[bad]
    a = arguments(2, 3, 4)
    spoil(a)
    forward = [a["x"], a["weight"], a["mask"]]
    meta = {name: tensor.to("meta") for name, tensor in a.items()}
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("squared_linear_backward", lambda: backend("squared_linear_backward", *a.values(), True)),
        ("squared_linear_backward", lambda: ops.squared_linear_backward(**meta)),
    ]
    if bad in BAD:
        calls.append(("squared_linear", lambda: backend("squared_linear", *forward)))
        calls.append(
            ("squared_linear", lambda: ops.squared_linear(*(t.to("meta") for t in forward)))
        )
    for op, call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f"{op}: {message}"


def test_a_precision_that_torch_does_not_know(backend: Backend):
    if backend.device == "emulated":
        return
    a = arguments(2, 3, 4)
    message = "precision must be highest, high or medium, got 'low'"
    with pytest.raises(ValueError) as error:
        backend("squared_linear", a["x"], a["weight"], a["mask"], "low")
    assert str(error.value) == f"squared_linear: {message}"
    with pytest.raises(ValueError) as error:
        backend("squared_linear_backward", *a.values(), True, True, "low")
    assert str(error.value) == f"squared_linear_backward: {message}"


@pytest.mark.parametrize("name", ["x", "mask", "dy", "saliency"])
def test_bad_device(name: str):
    a = arguments(2, 3, 4, device="meta")
    a[name] = torch.empty_like(a[name], device="cpu")
    with pytest.raises(ValueError, match=f"{name} must be on weight's device meta, got cpu"):
        ops.squared_linear_backward(**a)


@pytest.mark.parametrize("name", ["x", "mask", "dy", "saliency"])
def test_bad_device_on_a_gpu(device: torch.device, name: str):
    if device.type == "cpu":
        return
    a = arguments(2, 3, 4, device=device)
    a[name] = a[name].cpu()
    with pytest.raises(ValueError, match=f"{name} must be on weight's device cuda:0, got cpu"):
        ops.squared_linear_backward(**a)


# ---- memory


@pytest.mark.parametrize("T", [1, 8, 16, 32, 48])
def test_nothing_of_the_weights_size_is_allocated(T: int):
    need("cpu", _native.problem)
    a = arguments(T, 4096, 512)
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.squared_linear(a["x"], a["weight"], a["mask"])
        ops.squared_linear_backward(**a)
    most = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < most <= a["weight"].nbytes // 8


# ---- life without kernels, and what was built


def test_the_reference_stands_in_where_there_are_no_kernels(tmp_path: Path):
    shutil.copytree(
        Path(pxfast.__file__).parent, tmp_path / "pxfast", ignore=shutil.ignore_patterns("*.so")
    )
    program = """
import warnings
import torch
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from pxfast import ops, _native
    x, weight, saliency = torch.ones(2), torch.tensor([[1., 2.]]), torch.zeros(1, 2)
    for _ in range(2):
        assert ops.squared_linear(x, weight).tolist() == [5.]
        dx = ops.squared_linear_backward(torch.ones(1), x, weight, None, saliency)
    assert dx.tolist() == [1., 4.] and saliency.tolist() == [[2., 8.]]
    try:
        ops.squared_linear(x, weight.T)
    except ValueError as error:
        print(error)
print(*[w.message for w in said if "pxfast" in str(w.message)], sep="\\n")
print(_native.describe())
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    error, warning, description = result.stdout.splitlines()
    assert error == "squared_linear: x must have shape [..., 1], got [2]"
    assert "no kernels for cpu tensors" in warning and "pip install" in warning
    assert "libpxfast.so does not exist" in description


def test_what_was_built_is_described():
    need("cpu", _native.problem)
    description = _native.describe()
    assert set(description) == {"kernels", "cpu", "cuda"}
    with instruction_set("base"):
        assert _native.describe()["cpu"] == "base"
    with (
        instruction_set("sse9"),
        pytest.raises(RuntimeError, match="base, avx2 or avx512, got 'sse9'"),
    ):
        ops.squared_linear(torch.ones(1), torch.ones(1, 1))
