"""sparse_dual_conv2d on every instruction set and as the reference, against float64."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from backends import BACKENDS, Backend
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerances import sum_of_products
from torch import Tensor

import pxfast.reference.sparse_dual_conv2d as reference
from pxfast.ops.sparse_dual_conv2d import sparse_dual_conv2d

F32, F64 = torch.float32, torch.float64
NAN, INF = torch.nan, torch.inf

# An op of the CPU: the devices of CUDA kernels have none.
BACKENDS_HERE = [backend for backend in BACKENDS if backend.device in ("fallback", "cpu")]
NATIVE = [backend for backend in BACKENDS_HERE if backend.device == "cpu"]
everywhere = pytest.mark.parametrize(
    "backend", BACKENDS_HERE, indirect=True, ids=lambda backend: backend.name
)
natively = pytest.mark.parametrize("backend", NATIVE, indirect=True, ids=lambda b: b.name)


class Case:
    """Arguments of one call, and what it must give."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],  # of value
        O: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        *,
        squared: bool = False,
        density: float = 0.3,
        dtype: torch.dtype = F32,
        bias: bool = True,
        seed: int = 0,
    ) -> None:
        draw = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=draw, dtype=F64).to(dtype)

        weight = O, shape[1], *kernel
        self.value, self.path, self.weight = normal(*shape), normal(*shape).abs(), normal(*weight)
        self.mask = torch.rand(weight, generator=draw) < density
        self.bias = normal(O) if bias else None
        self.geometry = list(stride), list(padding), list(dilation)
        self.squared = squared

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self.value, self.path, self.weight, self.mask, self.bias

    def run(self, backend: Backend) -> tuple[Tensor, Tensor]:
        """y and path_out."""
        y, path_out = backend("sparse_dual_conv2d", *self.tensors(), *self.geometry, self.squared)
        return y, path_out

    def exact(self, magnitudes: bool = False) -> tuple[Tensor, Tensor]:
        """The same in float64, or sums of the terms' magnitudes."""
        value, path, weight, mask, bias = self.tensors()
        doubles = [None if t is None else t.double() for t in (value, path, weight, bias)]
        if magnitudes:
            doubles = [None if t is None else t.abs() for t in doubles]
        value, path, weight, bias = doubles
        return reference.sparse_dual_conv2d(
            value, path, weight, mask, bias, *self.geometry, self.squared
        )

    def check(self, y: Tensor, path_out: Tensor) -> None:
        """Compare with the exact result, errors relative to the sums of the terms' magnitudes."""
        terms = self.weight[0].numel() + 1
        for actual, exact, magnitude in zip(
            (y, path_out), self.exact(), self.exact(magnitudes=True), strict=True
        ):
            assert actual.dtype == self.value.dtype and actual.shape == exact.shape
            assert actual.is_contiguous()
            error = (actual.double() - exact).abs()
            assert (error <= sum_of_products(terms, actual.dtype) * magnitude).all(), error.max()


def test_the_reference_is_the_formula():
    case = Case((2, 3, 4, 5), 2, (2, 3), (1, 2), (1, 0), (2, 1), dtype=F64)
    w, m = case.weight, case.mask
    assert case.bias is not None
    for case.squared in (False, True):
        y, path_out = case.exact()
        assert y.shape == path_out.shape == (2, 2, 4, 2)
        for n, o, i, j in itertools.product(*map(range, y.shape)):
            value, path = case.bias[o].item(), 0.0
            for c, ky, kx in itertools.product(range(3), range(2), range(3)):
                row, column = i - 1 + 2 * ky, 2 * j + kx
                if 0 <= row < 4 and m[o, c, ky, kx]:
                    factor = w[o, c, ky, kx].item()
                    value += factor * case.value[n, c, row, column].item()
                    path += (factor**2 if case.squared else 1) * case.path[n, c, row, column].item()
            assert y[n, o, i, j].item() == pytest.approx(value)
            assert path_out[n, o, i, j].item() == pytest.approx(path)


# shape of value, outputs, kernel, stride, padding, dilation
GEOMETRIES = [
    ((1, 1, 1, 1), 1),
    ((2, 3, 5, 7), 4),
    ((3, 33, 7, 7), 9),
    ((2, 4, 9, 8), 3, (1, 1), (2, 2)),
    ((2, 4, 9, 8), 3, (1, 1), (1, 1), (2, 1)),
    ((2, 5, 8, 8), 6, (3, 3), (1, 1), (1, 1)),
    ((3, 5, 7, 7), 6, (3, 3), (1, 1), (0, 0)),
    ((2, 5, 7, 9), 6, (3, 3), (2, 2), (1, 1)),
    ((2, 3, 11, 13), 4, (3, 3), (1, 1), (2, 2), (2, 2)),
    ((2, 3, 11, 13), 4, (3, 3), (2, 3), (2, 2), (2, 2)),
    ((1, 3, 33, 34), 5, (7, 7), (2, 2), (3, 3)),
    ((2, 3, 6, 30), 4, (1, 5), (1, 1), (0, 2)),
    ((2, 3, 30, 6), 4, (5, 1), (3, 1), (2, 0)),
    ((2, 3, 6, 7), 4, (2, 2), (1, 1), (5, 4)),  # more padding than kernel
    ((2, 3, 6, 7), 4, (2, 3), (5, 4), (3, 3)),  # stride beyond the kernel
    ((4, 3, 3, 3), 4, (3, 3)),
    ((0, 3, 4, 4), 2, (3, 3)),
    ((2, 2, 3, 200), 3, (3, 3), (1, 1), (1, 1)),
]


@everywhere
@pytest.mark.parametrize("squared", [False, True], ids=["h", "joint"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_values(backend: Backend, dtype: torch.dtype, squared: bool):
    for geometry in GEOMETRIES:
        for bias, density in ((False, 0.3), (True, 0.3), (True, 0.1), (True, 0.7)):
            kind = {"squared": squared, "dtype": dtype, "bias": bias, "density": density}
            case = Case(*geometry, **kind)
            case.check(*case.run(backend))


# Tiles are 24, 48 and 128 positions, 48 for outputs in groups (float64: half of that), vectors 4,
# 8 and 16.
@everywhere
@pytest.mark.parametrize(
    "size", [1, 3, 4, 5, 15, 16, 17, 23, 24, 25, 47, 48, 49, 127, 128, 129, 257]
)
def test_sizes_around_tiles(backend: Backend, size: int):
    for shape, *geometry in (
        ((1, 3, 1, size), (1, 1)),
        ((3, 3, 1, size), (1, 1)),
        ((1, 3, 2, size), (3, 3), (1, 1), (1, 1)),
    ):
        for dtype, density in itertools.product((F32, F64), (0.1, 0.6)):
            case = Case(shape, 2, *geometry, dtype=dtype, density=density)
            case.check(*case.run(backend))


@natively
@pytest.mark.parametrize("pixels", [56, 14])
def test_layers_of_several_ranges_of_positions(backend: Backend, pixels: int):
    for kernel, stride, padding in ((3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0)):
        pairs = [(kernel,) * 2, (stride,) * 2, (padding,) * 2]
        for density in (0.05, 0.4):
            case = Case((3, 64, pixels, pixels), 22, *pairs, density=density)
            case.check(*case.run(backend))


@natively
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_groups_of_outputs_through_blocks_of_channels(backend: Backend, dtype: torch.dtype):
    """Kernels with a window and many channels: the sums of groups wait in memory between blocks."""
    for O, squared in ((1, False), (4, True), (7, False), (18, False)):
        kind = {"squared": squared, "density": 0.5, "dtype": dtype}
        case = Case((2, 150, 6, 9), O, (3, 3), (1, 1), (1, 1), **kind)
        case.mask[:, 30:70], case.mask[0] = False, False
        case.check(*case.run(backend))


# ---- masks


@everywhere
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_empty_and_full_masks(backend: Backend, density: float):
    for squared in (False, True):
        case = Case((2, 5, 6, 7), 4, (3, 3), squared=squared, density=density)
        y, path_out = case.run(backend)
        case.check(y, path_out)
        if density == 0:
            assert case.bias is not None
            assert torch.equal(y, case.bias[:, None, None].expand_as(y))
            assert not path_out.any()


@everywhere
def test_dead_channels(backend: Backend):
    case = Case((2, 9, 6, 7), 8, (3, 3), (1, 1), (1, 1))
    case.mask[:3], case.mask[:, 5:], case.mask[:, 0] = False, False, False
    case.check(*case.run(backend))


@everywhere
@pytest.mark.parametrize("junk", [NAN, INF, 1e30])
def test_a_masked_weight_is_exactly_0_whatever_it_holds(backend: Backend, junk: float):
    for squared in (False, True):
        case = Case((2, 5, 6, 7), 4, (3, 3), squared=squared)
        clean = case.run(backend)
        case.weight = case.weight.where(case.mask, junk)
        assert all(map(torch.equal, case.run(backend), clean))


@everywhere
def test_a_kept_weight_of_0_lets_path_sums_of_h_through(backend: Backend):
    case = Case((2, 5, 6, 7), 4, (3, 3))
    expected = case.run(backend)[1]
    case.weight.zero_()
    y, path_out = case.run(backend)
    assert torch.equal(path_out, expected) and path_out.any()
    assert case.bias is not None and torch.equal(y, case.bias[:, None, None].expand_as(y))


@natively
def test_nan_reaches_the_outputs_that_keep_a_weight_for_it_and_no_other(backend: Backend):
    """Positions beyond a row's end are computed and dropped: nothing of them may stay."""
    for stride in (1, 2):
        case = Case((3, 4, 6, 7), 5, (3, 3), (stride, stride), (1, 1))
        case.value[1, 2, ::5, ::6], case.path[1, 3, 0, 0], case.path[0, 3, 5, 6] = NAN, NAN, INF
        mask = case.mask.double()
        for actual, argument in zip(case.run(backend), (case.value, case.path), strict=True):
            bad = torch.conv2d((~argument.isfinite()).double(), mask, None, *case.geometry)
            assert torch.equal(actual.isfinite(), bad == 0)
            assert bad.any() and not bad.all()


# ---- memory: narrow paths, strides, surroundings


@everywhere
@pytest.mark.parametrize("narrow", list(itertools.product([False, True], repeat=4)))
def test_path_may_be_narrow(backend: Backend, narrow: tuple[bool, ...]):
    for kernel, stride in ((1, 1), (3, 1), (3, 2)):
        case = Case((2, 5, 6, 7), 4, (kernel, kernel), (stride, stride))
        for dim, constant in enumerate(narrow):
            if constant:
                case.path = case.path.narrow(dim, 0, 1)
        case.check(*case.run(backend))


def strided(tensor: Tensor) -> Iterator[Tensor]:
    """The same values with other strides."""
    yield tensor.to(memory_format=torch.channels_last)
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide[..., ::2] = tensor
    yield wide[..., ::2]
    tall = tensor.new_zeros(2 * tensor.shape[0] + 1, *tensor.shape[1:])
    tall[1::2] = tensor
    yield tall[1::2]


@everywhere
@pytest.mark.parametrize("name", ["value", "path", "weight", "mask"])
def test_strides(backend: Backend, name: str):
    case = Case((2, 5, 6, 7), 4, (3, 3))
    for other in strided(getattr(case, name)):
        assert not other.is_contiguous()
        changed = copy.copy(case)
        setattr(changed, name, other)
        case.check(*changed.run(backend))


@everywhere
def test_expanded_arguments(backend: Backend):
    case = Case((2, 5, 6, 7), 4, (3, 3))
    assert case.bias is not None
    case.value = case.value[:1, :1].expand(2, 5, 6, 7)
    case.path = case.path[:, :, :1, :1].expand(2, 5, 6, 7)
    case.mask, case.bias = case.mask[:1].expand(4, -1, -1, -1), case.bias[:1].expand(4)
    case.check(*case.run(backend))


@everywhere
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_what_lies_around_the_arguments_is_not_used(backend: Backend, dtype: torch.dtype):
    for geometry in GEOMETRIES:
        case = Case(*geometry, dtype=dtype)
        expected = case.run(backend)
        for name in ("value", "path", "weight", "mask", "bias"):
            tensor = getattr(case, name)
            junk = True if tensor.dtype == torch.bool else NAN
            memory = torch.full((3 + tensor.numel() + 67,), junk, dtype=tensor.dtype)
            inside = memory[3 : 3 + tensor.numel()].view(tensor.shape)
            setattr(case, name, inside.copy_(tensor))
        assert all(map(torch.equal, case.run(backend), expected))


# ---- the same bits


@natively
def test_threads_do_not_change_bits(backend: Backend):
    for shape, density in itertools.product(((1, 40, 7, 7), (5, 20, 30, 31)), (0.1, 0.4)):
        case = Case(shape, 70, (3, 3), (1, 1), (1, 1), density=density)
        threads, results = torch.get_num_threads(), []
        try:
            for n in (1, 2, 3, 3):
                torch.set_num_threads(n)
                results.append(case.run(backend))
        finally:
            torch.set_num_threads(threads)
        case.check(*results[0])
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))


@natively
def test_a_sample_gives_the_same_bits_alone(backend: Backend):
    for density in (0.1, 0.4):
        case = Case((5, 9, 7, 9), 6, (3, 3), (1, 1), (1, 1), density=density)
        check_samples_alone(backend, case)


def check_samples_alone(backend: Backend, case: Case):
    together = case.run(backend)
    for n in range(5):
        alone = copy.copy(case)
        alone.value, alone.path = case.value[n : n + 1], case.path[n : n + 1]
        for one, all_of_them in zip(alone.run(backend), together, strict=True):
            assert torch.equal(one[0], all_of_them[n])


# ---- any geometry

pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    shape=st.tuples(*(st.integers(low, high) for low, high in ((0, 4), (1, 9), (1, 20), (1, 40)))),
    O=st.integers(1, 9),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dilation=pairs,
    squared=st.booleans(),
    density=st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0]),
    dtype=st.sampled_from([F32, F64]),
    narrow=st.tuples(*[st.booleans()] * 4),
    backend=st.sampled_from([b for b in NATIVE if b.unavailable is None] or BACKENDS_HERE[:1]),
)
@settings(max_examples=300, deadline=None)
def test_any_geometry(shape, O, kernel, stride, padding, dilation, narrow, backend, **kind):
    for i in range(2):
        assume(shape[2 + i] + 2 * padding[i] >= dilation[i] * (kernel[i] - 1) + 1)
    case = Case(shape, O, kernel, stride, padding, dilation, **kind)
    for dim, constant in enumerate(narrow):
        if constant and shape[dim] > 0:
            case.path = case.path.narrow(dim, 0, 1)
    case.check(*case.run(backend))


def test_integers_stand_for_pairs():
    case = Case((2, 3, 9, 9), 4, (3, 3), (2, 2), (1, 1), (2, 2))
    with torch.no_grad():
        case.check(*sparse_dual_conv2d(*case.tensors(), 2, 1, 2))
        case.check(*sparse_dual_conv2d(*case.tensors(), (2, 2), [1, 1], 2, squared=False))


@natively
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_blocks_of_channels(backend: Backend, dtype: torch.dtype):
    """Pointwise layers of many channels and weights: sums wait in memory between blocks."""
    for shape, stride in (((3, 300, 5, 9), 1), ((1, 411, 9, 8), 2)):
        for density in (0.1, 0.5, 1.0):
            for squared in (False, True):
                kind = {"squared": squared, "density": density, "dtype": dtype}
                case = Case(shape, 9, (1, 1), (stride, stride), **kind)
                case.mask[4], case.mask[:, 100:140] = False, False
                case.check(*case.run(backend))
