"""The end of sparse_dual_conv2d (scale, residual, ReLU) everywhere, against float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from backends import BACKENDS, Backend
from tolerances import sum_of_products
from torch import Tensor

import pxfast.reference.sparse_dual_conv2d as reference
from pxfast import ops

F32, F64 = torch.float32, torch.float64
NAN = torch.nan

BACKENDS_HERE = [backend for backend in BACKENDS if backend.device in ("fallback", "cpu")]
NATIVE = [backend for backend in BACKENDS_HERE if backend.device == "cpu"]
everywhere = pytest.mark.parametrize(
    "backend", BACKENDS_HERE, indirect=True, ids=lambda backend: backend.name
)
natively = pytest.mark.parametrize("backend", NATIVE, indirect=True, ids=lambda b: b.name)

# shape of value, outputs, kernel, stride and padding of both dimensions
GEOMETRIES = [
    ((1, 1, 1, 1), 1, 1, 1, 0),
    ((2, 3, 5, 7), 4, 1, 1, 0),
    ((3, 33, 7, 7), 9, 1, 1, 0),
    ((2, 5, 9, 8), 6, 3, 1, 1),
    ((2, 5, 7, 9), 6, 3, 2, 1),
    ((2, 4, 9, 8), 3, 1, 2, 0),
    ((1, 3, 33, 34), 5, 7, 2, 3),
    ((0, 3, 4, 4), 2, 3, 1, 0),
    ((2, 2, 3, 200), 3, 3, 1, 1),
]
ENDS = [end for end in itertools.product([False, True], repeat=4) if any(end[1:])]


class Case:
    """Arguments of one call, by name, and what it must give."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        O: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        *,
        end: tuple[bool, bool, bool, bool] = (True, True, True, True),
        squared: bool = False,
        density: float = 0.3,
        dtype: torch.dtype = F32,
    ) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=draw, dtype=F64).to(dtype)

        bias, scale, residual, relu = end
        space = ((size + 2 * padding - kernel) // stride + 1 for size in shape[2:])
        out = shape[0], O, *space
        weight = normal(O, shape[1], kernel, kernel)
        self.arguments = {
            "value": normal(*shape),
            "path": normal(*shape).abs(),
            "weight": weight,
            "mask": torch.rand(weight.shape, generator=draw) < density,
            "bias": normal(O) if bias else None,
            "stride": [stride] * 2,
            "padding": [padding] * 2,
            "dilation": [1, 1],
            "squared": squared,
            "scale": normal(O) if scale else None,
            "residual": normal(*out) if residual else None,
            "residual_path": normal(*out).abs() if residual else None,
            "relu": relu,
        }

    def run(self, backend: Backend) -> tuple[Tensor, Tensor]:
        """y and path_out."""
        y, path_out = backend("sparse_dual_conv2d", *self.arguments.values())
        return y, path_out

    def exact(self, *, magnitudes: bool = False) -> tuple[Tensor, Tensor]:
        """The same without the ReLU in float64, or sums of the terms' magnitudes."""
        doubles = {
            name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in self.arguments.items()
        }
        if magnitudes:
            doubles = {n: x.abs() if n != "mask" and isinstance(x, Tensor) else x
                       for n, x in doubles.items()}  # fmt: skip
        return reference.sparse_dual_conv2d(**(doubles | {"relu": False}))

    def check(self, y: Tensor, path_out: Tensor) -> None:
        """Compare with the exact result, errors relative to the sums of the terms' magnitudes.

        A sum that is 0 within its error may be on either side of a ReLU, and its path with it.
        """
        exact, exact_path = self.exact()
        size, size_path = self.exact(magnitudes=True)
        tolerance = sum_of_products(self.arguments["weight"][0].numel() + 3, y.dtype)
        near = torch.zeros_like(exact, dtype=torch.bool)
        if self.arguments["relu"]:
            near = exact.abs() <= tolerance * size
            exact_path = exact_path.where(torch.where(near, path_out != 0, exact > 0), 0)
            exact = exact.relu()
            assert not (near & (y <= 0) & (path_out != 0)).any()
        assert y.is_contiguous() and path_out.is_contiguous()
        assert y.shape == path_out.shape == exact.shape
        assert ((y.double() - exact).abs() <= tolerance * size).all()
        assert ((path_out.double() - exact_path).abs() <= tolerance * size_path).all()


def test_the_reference_is_the_formula():
    case = Case((2, 3, 5, 4), 3, 3, 1, 1, dtype=F64)
    a = case.arguments
    for squared in (False, True):
        scaled = a["scale"][:, None, None, None] * a["weight"] * a["mask"]
        through = scaled.square() if squared else a["mask"].double()
        y = torch.conv2d(a["value"], scaled, a["bias"], padding=1) + a["residual"]
        path = torch.conv2d(a["path"], through, padding=1) + a["residual_path"]
        found = reference.sparse_dual_conv2d(**(a | {"squared": squared}))
        torch.testing.assert_close(found[0], y.clamp(min=0), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(found[1], path * (y > 0), rtol=1e-13, atol=1e-13)


def test_the_op_takes_the_end_by_name():
    case = Case((2, 3, 5, 4), 3, 3, 1, 1, dtype=F64)
    a = dict(case.arguments)
    a["residual"] = a["residual"], a.pop("residual_path")
    case.check(*ops.sparse_dual_conv2d(**a))


@everywhere
@pytest.mark.parametrize("squared", [False, True], ids=["h", "joint"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_values(backend: Backend, dtype: torch.dtype, squared: bool):
    for geometry, end, density in itertools.product(GEOMETRIES, ENDS, (0.1, 0.6)):
        case = Case(*geometry, end=end, squared=squared, density=density, dtype=dtype)
        case.check(*case.run(backend))


# Tiles are 24, 48 and 128 positions, 48 for outputs in groups (float64: half of that), vectors 4,
# 8 and 16.
@everywhere
@pytest.mark.parametrize("size", [1, 3, 4, 5, 15, 16, 17, 23, 24, 25, 47, 48, 49, 127, 128, 129])
def test_sizes_around_tiles(backend: Backend, size: int):
    for geometry in (((1, 3, 1, size), 2), ((3, 3, 2, size), 5, 3, 1, 1)):
        for dtype, density in itertools.product((F32, F64), (0.1, 0.6)):
            case = Case(*geometry, dtype=dtype, density=density)
            case.check(*case.run(backend))


@natively
def test_sums_that_wait_between_blocks_of_channels(backend: Backend):
    for geometry in (((3, 300, 5, 9), 9), ((2, 150, 6, 9), 7, 3, 1, 1), ((1, 411, 9, 8), 9, 1, 2)):
        for density, dtype in itertools.product((0.1, 0.5), (F32, F64)):
            case = Case(*geometry, density=density, dtype=dtype)
            case.check(*case.run(backend))


@everywhere
def test_empty_outputs_still_have_their_end(backend: Backend):
    case = Case((2, 5, 6, 7), 6, 3, 1, 1)
    a = case.arguments
    a["mask"][1:5] = False
    y, path_out = case.run(backend)
    case.check(y, path_out)
    alone = (a["bias"][1:5, None, None] + a["residual"][:, 1:5]).relu()
    assert torch.equal(y[:, 1:5], alone)
    assert torch.equal(path_out[:, 1:5], a["residual_path"][:, 1:5].where(alone > 0, 0))


@natively
def test_nan_passes_through_and_shuts_the_path(backend: Backend):
    for stride, density in itertools.product((1, 2), (0.1, 0.6)):
        case = Case((3, 4, 6, 7), 5, 3, stride, 1, density=density)
        a = case.arguments
        a["value"][1, 2, ::5, ::6], a["residual"][0, 1, 0, 0] = NAN, NAN
        bad = torch.conv2d(a["value"].isnan().float(), a["mask"].float(), None, stride, 1) > 0
        bad |= a["residual"].isnan()
        y, path_out = case.run(backend)
        assert torch.equal(y.isnan(), bad) and bad.any() and not bad.all()
        assert not path_out[bad].any() and path_out.isfinite().all()


def strided(tensor: Tensor) -> Iterator[Tensor]:
    """The same values with other strides, and amid NaN."""
    memory = torch.full((3 + tensor.numel() + 67,), NAN, dtype=tensor.dtype)
    yield memory[3 : 3 + tensor.numel()].view(tensor.shape).copy_(tensor)
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), NAN)
    wide[..., ::2] = tensor
    yield wide[..., ::2]


@everywhere
@pytest.mark.parametrize("name", ["scale", "residual", "residual_path"])
def test_strides_and_surroundings(backend: Backend, name: str):
    for geometry in (((2, 5, 6, 7), 4, 3, 1, 1), ((2, 5, 6, 7), 4)):
        case = Case(*geometry)
        expected = case.run(backend)
        for other in strided(case.arguments[name]):
            case.arguments[name] = other
            assert all(map(torch.equal, case.run(backend), expected))


@natively
def test_threads_do_not_change_bits(backend: Backend):
    for shape, density in itertools.product(((1, 40, 7, 7), (5, 20, 30, 31)), (0.1, 0.4)):
        case = Case(shape, 70, 3, 1, 1, density=density)
        threads, results = torch.get_num_threads(), []
        try:
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                results.append(case.run(backend))
        finally:
            torch.set_num_threads(threads)
        case.check(*results[0])
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))
