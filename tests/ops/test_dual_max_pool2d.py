"""dual_max_pool2d on every instruction set and as the reference: bit for bit torch's choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import BACKENDS, Backend
from torch import Tensor

from pxfast import ops
from pxfast.reference import dual_max_pool2d as reference

F32, F64 = torch.float32, torch.float64
on_cpu = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.device in ("fallback", "cpu")],
    indirect=True,
    ids=lambda backend: backend.name,
)
Geometry = tuple[tuple[int, ...], list[int], list[int], list[int]]  # shape, kernel, stride, padding

GEOMETRIES: list[Geometry] = [
    ((2, 3, 12, 112), [3, 3], [2, 2], [1, 1]),  # a stem: several vectors, one that reaches back
    ((2, 3, 7, 37), [3, 3], [1, 1], [1, 1]),
    ((1, 2, 8, 64), [2, 2], [2, 2], [0, 0]),  # every column read, none behind the row
    ((1, 2, 9, 33), [3, 2], [2, 1], [1, 0]),
    ((1, 1, 5, 70), [5, 4], [1, 2], [2, 2]),
    ((2, 2, 11, 50), [3, 3], [3, 3], [0, 1]),  # a stride that no vector takes
    ((1, 2, 1, 1), [1, 1], [1, 1], [0, 0]),
    ((1, 1, 1, 16), [2, 2], [2, 2], [1, 1]),
    ((1, 1, 2, 3), [2, 3], [5, 5], [0, 0]),
    ((0, 3, 4, 4), [2, 2], [2, 2], [0, 0]),
]


def maps(shape: tuple[int, ...], dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    """Values of which many are equal, some NaN or infinite; path sums that are all different."""
    draw = torch.Generator().manual_seed(1)
    value = torch.randint(-2, 3, shape, generator=draw).to(dtype)
    kind = torch.rand(shape, generator=draw)
    value[kind < 0.04] = torch.nan
    value[(kind > 0.04) & (kind < 0.4)] = -torch.inf
    return value, torch.arange(value.numel(), dtype=dtype).reshape(shape)


def expected(value: Tensor, path: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Entry by entry: the first of the largest, the last NaN."""
    _, kernel, stride, padding = geometry
    sizes = [
        (value.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2)
    ]  # rounded down
    y = value.new_empty(*value.shape[:2], *sizes)
    path_out, path = torch.empty_like(y), path.expand(value.shape)
    for n, c, h, w in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        window = [
            (value[n, c, i, j].item(), path[n, c, i, j].item())
            for i in range(h * stride[0] - padding[0], h * stride[0] - padding[0] + kernel[0])
            for j in range(w * stride[1] - padding[1], w * stride[1] - padding[1] + kernel[1])
            if 0 <= i < value.shape[2] and 0 <= j < value.shape[3]
        ]
        best = window[0]
        for entry in window:
            if entry[0] > best[0] or entry[0] != entry[0]:
                best = entry
        y[n, c, h, w], path_out[n, c, h, w] = best
    return y, path_out


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """The same bits, NaN where NaN is, and contiguous."""
    for x, y in zip(found, wanted, strict=True):
        assert x.is_contiguous() and x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@on_cpu
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_values(backend: Backend, geometry: Geometry, dtype: torch.dtype) -> None:
    value, path = maps(geometry[0], dtype)
    found = backend("dual_max_pool2d", value, path, *geometry[1:])
    same(found, expected(value, path, geometry))


@on_cpu
@pytest.mark.parametrize("constant", [[0], [1], [2, 3], [3], [0, 1, 2, 3]], ids=str)
def test_constant_dimensions_of_path(backend: Backend, constant: list[int]) -> None:
    geometry = ((2, 3, 6, 40), [3, 3], [2, 2], [1, 1])
    value, _ = maps(geometry[0])
    path = torch.rand([1 if dim in constant else size for dim, size in enumerate(geometry[0])])
    found = backend("dual_max_pool2d", value, path, *geometry[1:])
    same(found, expected(value, path, geometry))


@on_cpu
def test_any_strides_and_any_threads(backend: Backend) -> None:
    geometry = ((5, 64, 20, 40), [3, 3], [2, 2], [1, 1])
    value, path = maps(geometry[0])
    wanted = backend("dual_max_pool2d", value, path, *geometry[1:])
    other = value.mT.contiguous().mT, path.contiguous(memory_format=torch.channels_last)
    same(backend("dual_max_pool2d", *other, *geometry[1:]), wanted)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            same(backend("dual_max_pool2d", value, path, *geometry[1:]), wanted)
    finally:
        torch.set_num_threads(before)


@on_cpu
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_nothing_outside_is_read(backend: Backend, dtype: torch.dtype) -> None:
    """Behind the arrays stand values that would win."""
    for width in range(34, 70):
        geometry = ((1, 2, 5, width), [3, 3], [2, 2], [1, 1])
        value, path = maps(geometry[0], dtype)
        size = value.numel()
        inside = []
        for tensor in (value.nan_to_num(0.0), path):
            room = torch.full((size + 128,), torch.inf, dtype=dtype)
            room[64 : 64 + size] = tensor.flatten()
            inside.append(room[64 : 64 + size].view(tensor.shape))
        found = backend("dual_max_pool2d", *inside, *geometry[1:])
        same(found, expected(inside[0], inside[1], geometry))


def test_opcheck() -> None:
    value, path = maps((2, 3, 8, 9))
    value = value.nan_to_num(0.5)  # opcheck takes NaN for a difference
    for narrow in (path, path[:, :1, :1, :1]):
        args = (value, narrow, [3, 3], [2, 2], [1, 1])
        torch.library.opcheck(torch.ops.pxfast.dual_max_pool2d, args)


def test_one_number_stands_for_both() -> None:
    value, path = maps((2, 3, 8, 9))
    same(ops.dual_max_pool2d(value, path, 3, 2, 1), reference.dual_max_pool2d(
        value, path, [3, 3], [2, 2], [1, 1]
    ))  # fmt: skip


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "value_dtype": ({"value": torch.ones(1, 2, 4, 5).half()}, "float32 or float64, got float16"),
    "value_dims": (
        {"value": torch.ones(2, 4, 5)},
        "value must have shape [N, C, H, W], none but N of them 0, got [2, 4, 5]",
    ),
    "value_empty": (
        {"value": torch.ones(1, 2, 0, 5)},
        "value must have shape [N, C, H, W], none but N of them 0, got [1, 2, 0, 5]",
    ),
    "path_shape": (
        {"path": torch.ones(1, 2, 4, 4)},
        "path must have value's shape [1, 2, 4, 5] or size 1 instead, got [1, 2, 4, 4]",
    ),
    "path_dtype": (
        {"path": torch.ones(1, 2, 4, 5, dtype=F64)},
        "path must have value's dtype float32, got float64",
    ),
    "kernel": ({"kernel": [0, 2]}, "kernel must be two integers >= 1, got [0, 2]"),
    "stride": ({"stride": [1]}, "stride must be two integers >= 1, got [1]"),
    "padding": ({"padding": [-1, 0]}, "padding must be two integers >= 0, got [-1, 0]"),
    "padding_large": ({"padding": [0, 2]}, "padding must be at most half the kernel 3, got 2"),
    "too_small": (
        {"kernel": [3, 8]},
        "value with its padding must be at least as large as the kernel, 8, got 7",
    ),
}


@on_cpu
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gives_the_same_error_everywhere(backend: Backend, bad: str) -> None:
    change, message = BAD[bad]
    a: dict[str, Any] = {
        "value": torch.ones(1, 2, 4, 5), "path": torch.ones(1, 2, 4, 5), "kernel": [3, 3],
        "stride": [1, 1], "padding": [0, 1],
    } | change  # fmt: skip
    meta = {name: t.to("meta") if isinstance(t, Tensor) else t for name, t in a.items()}
    calls: list[Callable[[], Any]] = [
        lambda: backend("dual_max_pool2d", *a.values()),
        lambda: ops.dual_max_pool2d(**meta),
    ]
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith("dual_max_pool2d: ")
        assert str(error.value).endswith(message)
