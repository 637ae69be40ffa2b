"""The CUDA source of squared_linear, executed on the CPU, against sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulated import kernels
from emulated.build import Program
from emulated.kernels import ORDERS, PRECISIONS, Array, Order
from emulated.linear_case import Case, as_float64, as_stored, close
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import split_products

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
# 128 x 128 x 16 (medium precision: 256 x 128 x 16); sides are multiples of 8, and some reductions
# are split.
MANY = [
    *[(17, 8, 8), (31, 56, 24), (32, 64, 16), (33, 72, 8), (64, 128, 64), (65, 136, 72)],
    *[(40, 24, 136), (150, 16, 40)],
]
MANY_REAL = [(128, 64, 64), (129, 136, 72), (197, 64, 520), (257, 72, 136)]
LARGE = {"forward": (2044, 1028, 12), "dx": (2044, 12, 1028), "saliency": (12, 2044, 1028)}


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
@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_tokens(precision: str, order: Order, dtype: str, masked: bool) -> None:
    for sizes in MANY:
        case = Case(sizes, dtype, masked, precision=precision)
        case.check(*case.run(order), split_products(case.terms, precision))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sizes", MANY_REAL, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_tokens_in_the_tiles_of_a_gpu(
    precision: str, sizes: tuple[int, int, int], dtype: str
) -> None:
    case = Case(sizes, dtype, masked=True, precision=precision)
    case.check(*case.run(small=False), split_products(case.terms, precision))


def equal_terms(dtype: str, precision: str) -> Case:
    """Numbers with large second and third pieces: errors of each are all of one sign."""
    case = Case((40, 64, 64), dtype, masked=False, precision=precision)
    case.x[...] = case.dy[...] = np.float32(1.00395)
    case.weight[...] = as_stored(np.array(1.00195 if dtype == "float32" else 1.0390625), dtype)
    case.squared = as_float64(case.weight) ** 2
    return case


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_tokens_keep_the_digits_that_are_asked_for(precision: str, dtype: str) -> None:
    case = equal_terms(dtype, precision)
    case.check(*case.run(), split_products(case.terms, precision))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("fewer", "more"), [("high", "highest"), ("medium", "high")])
def test_fewer_digits_are_fewer(fewer: str, more: str, dtype: str) -> None:
    case = equal_terms(dtype, fewer)
    with pytest.raises(AssertionError):
        case.check(*case.run(), split_products(case.terms, more))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_medium_rounds_path_sums_and_squares(dtype: str) -> None:
    """Of the numbers as they are rounded, the sums are those of float32."""
    case = Case((40, 72, 64), dtype, masked=True, precision="medium")
    y, dx, saliency = case.run()
    x, dy, squared = map(rounded, (case.x, case.dy, case.squared))
    before = case.saliency.astype(np.float64)
    tolerance = split_products(case.terms) + 36 / 16 * case.terms * 2**-24
    close(y, x @ squared.T, case, tolerance)
    close(dx, dy @ squared, case, tolerance)
    close(saliency, before + dy.T @ x * case.squared, case, tolerance)


def rounded(values: Array) -> Array:
    """To the nearest bf16."""
    return torch.from_numpy(values).float().bfloat16().double().numpy()


@pytest.mark.parametrize("sizes", [(1, 40, 60), (8, 40, 60), (16, 40, 64), (40, 40, 60)], ids=str)
def test_precision_is_for_tensor_cores_alone(sizes: tuple[int, int, int]) -> None:
    for dtype in ("float32", "float64"):
        results = [Case(sizes, dtype, True, precision=p).run() for p in PRECISIONS]
        for other in results[1:]:
            assert all(map(np.array_equal, other, results[0]))


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
    ("sizes", "precision"),
    [
        *[((tokens, 70, 300), "highest") for tokens in (1, 6, 50)],
        *[((130, 64, 72), precision) for precision in PRECISIONS],
    ],
    ids=str,
)
def test_the_same_bits_in_every_order(
    sizes: tuple[int, int, int], precision: str, small: bool
) -> None:
    case = Case(sizes, "float32", masked=True, precision=precision)
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
@pytest.mark.parametrize("precision", PRECISIONS)
def test_infinity_and_nan_go_through(sizes: tuple[int, int, int], precision: str) -> None:
    case = Case(sizes, "float32", masked=False, precision=precision)
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


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scratch_is_small(precision: str) -> None:
    """At most 256 tiles, 128 of tensor cores, or 512 strips of few tokens; none for one split.

    In medium precision path sums besides, as bf16.
    """
    digits = PRECISIONS.index(precision)
    for tokens in (1, 8, 9, 64, 197, 20_000, 1 << 20):
        for outputs, inputs in ((10, 64), (3072, 768), (768, 3072), (1 << 15, 1 << 15)):
            sizes = (tokens, outputs, inputs, 0)
            forward = kernels.library().emulated_scratch_bytes(*sizes, digits)
            backward = kernels.library().emulated_backward_scratch_bytes(*sizes, True, digits)
            rounds = precision == "medium" and tokens >= 128 and outputs >= 64
            paths = [2 * tokens * columns if rounds else 0 for columns in (inputs, outputs)]
            largest = 4 << 20 if tokens < 128 else 8 << 20
            if precision == "medium":
                largest *= 2  # larger tiles
            assert paths[0] <= forward <= largest + paths[0] + 256
            assert sum(paths) <= backward <= largest + sum(paths) + 512
    assert kernels.library().emulated_scratch_bytes(8, 3072, 768, 0, digits) == 0
    assert kernels.library().emulated_backward_scratch_bytes(8, 3072, 768, 0, False, digits) == 0


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
