"""The CUDA source of squared_linear, executed on the CPU, against sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulated import kernels
from emulated.build import Program
from emulated.kernels import ORDERS, Array, Order
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import split_products, sum_of_products

DTYPES = ("float32", "float64", "bfloat16", "float16")

# T, O, K: one below, at and one above the tiles of small_cut.h (16 x 32 x 8, 32 x 64 x 8), several
# of them on every axis, and few tokens (up to 8) with strips of 128 columns and groups of 8 rows.
SMALL = [
    *[(1, 1, 1), (1, 7, 127), (1, 8, 128), (1, 9, 129), (2, 33, 260), (7, 17, 64), (8, 25, 132)],
    *[(9, 1, 1), (15, 31, 7), (16, 32, 8), (17, 33, 9), (31, 63, 33), (32, 64, 32), (33, 65, 31)],
    *[(36, 68, 44), (70, 132, 36), (65, 20, 100)],
]
# What a GPU runs: tiles of 64 x 64 x 16, and from 256 tiles on those of 128 x 64 x 16.
REAL = [(1, 33, 260), (5, 70, 136), (9, 65, 68), (65, 63, 17), (64, 64, 600), (600, 36, 20)]
# Many tokens, on tensor cores: small tiles of 32 x 64 x 16 (m, n, r), those of a GPU of
# 128 x 128 x 16; sides are multiples of 8, and some reductions are split.
MANY = [
    *[(17, 8, 8), (31, 56, 24), (32, 64, 16), (33, 72, 8), (64, 128, 64), (65, 136, 72)],
    *[(40, 24, 136), (150, 16, 40)],
]
MANY_REAL = [(128, 64, 64), (129, 136, 72), (197, 64, 520)]
LARGE = {"forward": (2044, 1028, 12), "dx": (2044, 12, 1028), "saliency": (12, 2044, 1028)}


class Case:
    """Random arguments of one call, and what must come of them."""

    def __init__(self, sizes: tuple[int, int, int], dtype: str, masked: bool, seed: int = 0):
        tokens, outputs, inputs = sizes
        path = np.float64 if dtype == "float64" else np.float32
        random = np.random.default_rng([seed, *sizes])
        self.dtype, self.terms = path, max(sizes)
        self.x = random.uniform(0, 1, (tokens, inputs)).astype(path)
        self.dy = random.uniform(0, 1, (tokens, outputs)).astype(path)
        self.saliency = random.uniform(0, 1, (outputs, inputs)).astype(path)
        self.weight = as_stored(random.normal(size=(outputs, inputs)), dtype)
        self.mask = random.integers(0, 2, (outputs, inputs), np.uint8) if masked else None
        keep = np.ones((outputs, inputs)) if self.mask is None else self.mask
        self.squared = np.where(keep, as_float64(self.weight) ** 2, 0)
        if self.mask is not None:  # a masked weight counts as 0, whatever it holds
            unused = np.array([np.nan if tokens % 2 else 1000.0])
            self.weight[self.mask == 0] = as_stored(unused, dtype)

    def run(self, order: Order = "forward", small: bool = True) -> tuple[Array, Array, Array]:
        """y, dx and saliency as the kernels compute them."""
        saliency = self.saliency.copy()
        y = kernels.squared_linear(self.x, self.weight, self.mask, order=order, small=small)
        dx = kernels.squared_linear_backward(
            self.dy, self.x, self.weight, self.mask, saliency, order=order, small=small
        )
        assert dx is not None
        return y, dx, saliency

    def check(self, y: Array, dx: Array, saliency: Array, tolerance: float | None = None) -> None:
        x, dy = self.x.astype(np.float64), self.dy.astype(np.float64)
        close(y, x @ self.squared.T, self, tolerance)
        close(dx, dy @ self.squared, self, tolerance)
        close(saliency, self.saliency + dy.T @ x * self.squared, self, tolerance)


def as_stored(values: Array, dtype: str) -> Array:
    if dtype != "bfloat16":
        return values.astype(dtype)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def as_float64(stored: Array) -> Array:
    if stored.dtype != np.uint16:
        return stored.astype(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def close(actual: Array, expected: Array, case: Case, tolerance: float | None = None) -> None:
    """Every entry by itself: no term is negative, so it is its sum of magnitudes. NaN fails."""
    path = torch.float64 if case.dtype == np.float64 else torch.float32
    if tolerance is None:
        tolerance = sum_of_products(case.terms, path)
    assert actual.dtype == case.dtype
    assert np.all(np.abs(actual - expected) <= tolerance * expected)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_small_tiles(order: Order, dtype: str, masked: bool) -> None:
    for sizes in SMALL:
        case = Case(sizes, dtype, masked)
        case.check(*case.run(order))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", REAL, ids=str)
def test_the_tiles_of_a_gpu(sizes: tuple[int, int, int], dtype: str) -> None:
    case = Case(sizes, dtype, masked=True)
    case.check(*case.run(small=False))


@pytest.mark.parametrize("sizes", LARGE.values(), ids=LARGE)
def test_the_large_tiles_of_a_gpu(sizes: tuple[int, int, int]) -> None:
    case = Case(sizes, "float32", masked=True)
    case.check(*case.run(small=False))


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("order", ORDERS)
def test_many_tokens(order: Order, dtype: str, masked: bool) -> None:
    for sizes in MANY:
        case = Case(sizes, dtype, masked)
        case.check(*case.run(order), split_products(case.terms))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sizes", MANY_REAL, ids=str)
def test_many_tokens_in_the_tiles_of_a_gpu(sizes: tuple[int, int, int], dtype: str) -> None:
    case = Case(sizes, dtype, masked=True)
    case.check(*case.run(small=False), split_products(case.terms))


@pytest.mark.parametrize(("dtype", "weight"), [("float32", 1.00195), ("bfloat16", 1.0390625)])
def test_many_tokens_keep_the_digits_of_a_float(dtype: str, weight: float) -> None:
    """Equal terms with large second and third pieces: errors of each are all of one sign."""
    case = Case((40, 64, 64), dtype, masked=False)
    case.x[...] = case.dy[...] = np.float32(1.0039)
    case.weight[...] = as_stored(np.array(weight), dtype)
    case.squared = as_float64(case.weight) ** 2
    case.check(*case.run(), split_products(case.terms))


def test_what_tensor_cores_cut_off_does_not_add_up() -> None:
    """Sums kept in the tensor cores would be 180 u too low here, u = 2^-24."""
    case = Case((130, 8, 1024), "float32", masked=False)
    y = kernels.squared_linear(case.x, case.weight, small=True)
    close(y, case.x.astype(np.float64) @ case.squared.T, case, split_products(case.terms))


@given(
    sizes=st.tuples(st.integers(1, 80), st.integers(0, 150), st.integers(0, 150)),
    dtype=st.sampled_from(DTYPES),
    masked=st.booleans(),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_sizes(
    sizes: tuple[int, int, int], dtype: str, masked: bool, order: Order, seed: int
) -> None:
    case = Case(sizes, dtype, masked, seed)
    case.check(*case.run(order))


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("name", ["x", "dy", "weight", "mask", "saliency"])
def test_arrays_off_their_alignment(name: str, tokens: int) -> None:
    case = Case((tokens, 64, 64), "float32", masked=True)
    setattr(case, name, shifted(getattr(case, name)))
    case.check(*case.run())


def shifted(array: Array) -> Array:
    """The same values one element off a 64-byte boundary."""
    memory = np.empty(array.size * array.itemsize + 128, np.uint8)
    start = -memory.ctypes.data % 64 + array.itemsize
    moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    "sizes", [(1, 70, 300), (6, 70, 300), (50, 70, 300), (130, 64, 72)], ids=str
)
def test_the_same_bits_in_every_order(sizes: tuple[int, int, int], small: bool) -> None:
    case = Case(sizes, "float32", masked=True)
    first = case.run("forward", small)
    for order in ORDERS[1:]:
        for got, expected in zip(case.run(order, small), first, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("sizes", [(1, 20, 40), (40, 20, 40), (40, 24, 40)], ids=str)
def test_masked_weights_keep_their_saliency(sizes: tuple[int, int, int]) -> None:
    case = Case(sizes, "float32", masked=True)
    saliency = case.run()[2]
    assert case.mask is not None
    masked = case.mask == 0
    np.testing.assert_array_equal(saliency[masked], case.saliency[masked])


@pytest.mark.parametrize("sizes", [(3, 4, 8), (20, 4, 8), (40, 8, 72)], ids=str)
def test_infinity_and_nan_go_through(sizes: tuple[int, int, int]) -> None:
    case = Case(sizes, "float32", masked=False)
    inputs = sizes[2]
    case.weight[1, 2], case.weight[3, 5] = np.inf, np.nan
    y, dx, saliency = case.run()
    assert np.isinf(y[:, 1]).all() and np.isnan(y[:, 3]).all() and np.isfinite(y[:, [0, 2]]).all()
    assert np.isinf(dx[:, 2]).all() and np.isnan(dx[:, 5]).all()
    assert np.isinf(saliency[1, 2]) and np.isnan(saliency[3, 5])
    assert np.isfinite(np.delete(saliency.ravel(), [inputs + 2, 3 * inputs + 5])).all()


@pytest.mark.parametrize("sizes", [(1, 40, 60), (5, 40, 60), (40, 40, 60), (40, 40, 64)], ids=str)
def test_without_dx(sizes: tuple[int, int, int]) -> None:
    case = Case(sizes, "float32", masked=True)
    saliency, arguments = case.saliency.copy(), (case.dy, case.x, case.weight, case.mask)
    assert kernels.squared_linear_backward(*arguments, saliency, want_dx=False, small=True) is None
    np.testing.assert_array_equal(saliency, case.run()[2])


@pytest.mark.parametrize(
    "sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (40, 0, 4), (40, 3, 0)], ids=str
)
def test_zero_sizes(sizes: tuple[int, int, int]) -> None:
    case = Case(sizes, "float32", masked=False)
    y, dx, saliency = case.run()
    assert not y.any() and not dx.any()
    np.testing.assert_array_equal(saliency, case.saliency)


def test_scratch_is_small() -> None:
    """At most 256 tiles, 128 of tensor cores, or 512 strips of few tokens; none for one split."""
    for tokens in (1, 8, 9, 64, 197, 20_000, 1 << 20):
        for outputs, inputs in ((10, 64), (3072, 768), (768, 3072), (1 << 15, 1 << 15)):
            sizes = (tokens, outputs, inputs)
            forward = kernels.library().emulated_scratch_bytes(*sizes, 0)
            backward = kernels.library().emulated_backward_scratch_bytes(*sizes, 0, True)
            largest = 4 << 20 if tokens < 128 else 8 << 20
            assert 0 <= forward <= largest
            assert 0 <= backward <= largest
    assert kernels.library().emulated_scratch_bytes(8, 3072, 768, 0) == 0
    assert kernels.library().emulated_backward_scratch_bytes(8, 3072, 768, 0, False) == 0


def test_storage_types_widen_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    widen = np.vectorize(kernels.library().emulated_f16, otypes=[np.float32])
    np.testing.assert_array_equal(widen(bits), bits.view(np.float16).astype(np.float32))
    widen = np.vectorize(kernels.library().emulated_bf16, otypes=[np.float32])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(widen(bits), as_float64(bits).astype(np.float32))


# ThreadSanitizer judges by what orders two accesses, not by when they happen.


@pytest.mark.parametrize("program", [Program("huge_cases.cpp")], ids=["plain"])
def test_more_than_two_to_the_31_elements(program: Program) -> None:
    ran = program.run()
    if "UNAVAILABLE" in ran.stdout:
        pytest.skip(ran.stdout)
    assert (ran.returncode, ran.stdout) == (0, "PASSED\n")
