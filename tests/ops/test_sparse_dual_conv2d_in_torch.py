"""sparse_dual_conv2d as an op of torch: opcheck, arguments, bad input, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import BACKENDS, Backend, need
from torch import Tensor

from pxfast import _native, ops

F32, F64 = torch.float32, torch.float64
on_cpu = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.device in ("fallback", "cpu")],
    indirect=True,
    ids=lambda backend: backend.name,
)


def arguments(dtype: torch.dtype = F32) -> dict[str, Any]:
    """Arguments of the op, by name."""
    torch.manual_seed(0)
    return {
        "value": torch.randn(2, 3, 8, 9, dtype=dtype),
        "path": torch.rand(2, 3, 8, 9, dtype=dtype),
        "weight": torch.randn(4, 3, 3, 3, dtype=dtype),
        "mask": torch.rand(4, 3, 3, 3) < 0.5,
        "bias": torch.randn(4, dtype=dtype),
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "squared": False,
        "scale": None,
        "residual": None,
        "residual_path": None,
        "relu": False,
    }


def end(dtype: torch.dtype = F32) -> dict[str, Any]:
    """Arguments that give the op an end."""
    return {
        "scale": torch.randn(4, dtype=dtype),
        "residual": torch.randn(2, 4, 8, 9, dtype=dtype),
        "residual_path": torch.rand(2, 4, 8, 9, dtype=dtype),
        "relu": True,
    }


def by_name(a: dict[str, Any]) -> dict[str, Any]:
    """The same as pxfast.ops.sparse_dual_conv2d takes them: the residual as a pair."""
    residual, path = a["residual"], a["residual_path"]
    pair = None if residual is path is None else (residual, path)
    return {name: x for name, x in a.items() if name != "residual_path"} | {"residual": pair}


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("squared", [False, True])
def test_opcheck(dtype: torch.dtype, squared: bool):
    for change in (
        {},
        {"bias": None},
        {"stride": [2, 2]},
        {"path": torch.rand(1, 3, 1, 1).to(dtype)},
        end(dtype),
    ):
        a = arguments(dtype) | {"squared": squared} | change
        torch.library.opcheck(torch.ops.pxfast.sparse_dual_conv2d, tuple(a.values()))


@on_cpu
def test_every_argument_arrives(backend: Backend):
    """torch does not compare the arguments of a kernel on its stable ABI with the schema."""
    a = arguments(F64)
    plain, ended = (backend("sparse_dual_conv2d", *x.values()) for x in (a, a | end(F64)))
    changes = {
        "value": a["value"] + 1,
        "path": a["path"] + 1,
        "weight": a["weight"] + 1,
        "mask": ~a["mask"],
        "bias": a["bias"] + 1,
        "stride": [2, 1],
        "padding": [1, 0],
        "dilation": [1, 2],
        "squared": True,
    }
    changes |= {name: None if name != "relu" else False for name in end()}
    changes |= {"residual": end(F64)["residual"] + 1, "residual_path": end(F64)["residual"] + 1}
    assert changes.keys() == a.keys()
    for name, changed in changes.items():
        start, expected = (a | end(F64), ended) if name in end() else (a, plain)
        other = backend("sparse_dual_conv2d", *(start | {name: changed}).values())
        assert any(
            x.shape != y.shape or not torch.equal(x, y)
            for x, y in zip(other, expected, strict=True)
        ), f"{name} has no effect"


# ---- bad input: the same error in Python and from the kernel

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "weight_dims": (
        {"weight": torch.ones(4, 3)},
        "weight must have shape [O, C, kh, kw], none of them 0, got [4, 3]",
    ),
    "weight_empty": (
        {"weight": torch.ones(4, 3, 0, 3)},
        "weight must have shape [O, C, kh, kw], none of them 0, got [4, 3, 0, 3]",
    ),
    "weight_dtype": (
        {"weight": torch.ones(4, 3, 3, 3, dtype=torch.bfloat16)},
        "weight must be float32 or float64, got bfloat16",
    ),
    "value_channels": (
        {"value": torch.ones(2, 4, 8, 9)},
        "value must have shape [N, 3, H, W], got [2, 4, 8, 9]",
    ),
    "value_dims": (
        {"value": torch.ones(3, 8, 9)},
        "value must have shape [N, 3, H, W], got [3, 8, 9]",
    ),
    "value_dtype": (
        {"value": torch.ones(2, 3, 8, 9, dtype=F64)},
        "value must have weight's dtype float32, got float64",
    ),
    "path_shape": (
        {"path": torch.ones(2, 2, 8, 9)},
        "path must have value's shape [2, 3, 8, 9] or size 1 instead, got [2, 2, 8, 9]",
    ),
    "path_dims": (
        {"path": torch.ones(3, 8, 9)},
        "path must have value's shape [2, 3, 8, 9] or size 1 instead, got [3, 8, 9]",
    ),
    "path_dtype": (
        {"path": torch.ones(2, 3, 8, 9, dtype=torch.float16)},
        "path must have weight's dtype float32, got float16",
    ),
    "mask_shape": (
        {"mask": torch.ones(3, 4, 3, 3, dtype=torch.bool)},
        "mask must have weight's shape [4, 3, 3, 3], got [3, 4, 3, 3]",
    ),
    "mask_dtype": ({"mask": torch.ones(4, 3, 3, 3)}, "mask must be bool, got float32"),
    "bias_shape": ({"bias": torch.ones(3)}, "bias must have shape [4], got [3]"),
    "bias_dtype": (
        {"bias": torch.ones(4, dtype=F64)},
        "bias must have weight's dtype float32, got float64",
    ),
    "scale_shape": ({"scale": torch.ones(3)}, "scale must have shape [4], got [3]"),
    "scale_dtype": (
        {"scale": torch.ones(4, dtype=F64)},
        "scale must have weight's dtype float32, got float64",
    ),
    "residual_alone": (
        {"residual": torch.ones(2, 4, 8, 9)},
        "residual and residual_path go together, got only one of them",
    ),
    "residual_shape": (
        {"residual": torch.ones(2, 4, 8, 1), "residual_path": torch.ones(2, 4, 8, 9)},
        "residual must have the result's shape [2, 4, 8, 9], got [2, 4, 8, 1]",
    ),
    "residual_path_dtype": (
        {"residual": torch.ones(2, 4, 8, 9), "residual_path": torch.ones(2, 4, 8, 9, dtype=F64)},
        "residual_path must have weight's dtype float32, got float64",
    ),
    "stride": ({"stride": [1, 0]}, "stride must be two integers >= 1, got [1, 0]"),
    "padding": ({"padding": [-1, 0]}, "padding must be two integers >= 0, got [-1, 0]"),
    "dilation": ({"dilation": [1]}, "dilation must be two integers >= 1, got [1]"),
    "too_small": (
        {"dilation": [1, 6]},
        "value with its padding must be at least as large as the dilated kernel, 13, got 11",
    ),
}


@on_cpu
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gives_the_same_error_everywhere(backend: Backend, bad: str):
    change, message = BAD[bad]
    a = arguments() | change
    meta = {name: t.to("meta") if isinstance(t, Tensor) else t for name, t in a.items()}
    calls: list[Callable[[], Any]] = [
        lambda: backend("sparse_dual_conv2d", *a.values()),
        lambda: ops.sparse_dual_conv2d(**by_name(meta)),
    ]
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f"sparse_dual_conv2d: {message}"


@pytest.mark.parametrize("name", ["value", "path", "mask", "bias"])
def test_bad_device(name: str):
    a = {key: t.to("meta") if isinstance(t, Tensor) else t for key, t in arguments().items()}
    a[name] = torch.empty_like(a[name], device="cpu")
    with pytest.raises(ValueError, match=f"{name} must be on weight's device meta, got cpu"):
        ops.sparse_dual_conv2d(**by_name(a))


def test_memory_is_proportional_to_the_non_zeros():
    need("cpu", _native.problem)
    weight, value = torch.randn(256, 128, 3, 3), torch.rand(1, 128, 7, 7)
    for density in (0.01, 0.07):
        mask = torch.rand_like(weight) < density
        with torch.profiler.profile(profile_memory=True) as profile:
            ops.sparse_dual_conv2d(value, value, weight, mask, padding=1)
        most = max(event.cpu_memory_usage for event in profile.events())
        pairs = 128 * (3 * 9 + 1) + 256 * 7  # of vectors: what a row reads, and its sums
        own = torch.get_num_threads() * 2 * 64 * pairs
        assert 8 * mask.sum() <= most <= 8 * mask.sum() + 2 * 256 * 49 * 4 + own + 65536
