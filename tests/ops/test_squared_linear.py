"""squared_linear and squared_linear_backward on every backend, against float64."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from backends import Backend
from tolerances import split_products, sum_of_products
from torch import Tensor

import pxfast.reference.squared_linear as reference

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
NAN, INF = torch.nan, torch.inf

# T, O, K: empty, single, and around the sizes that kernels cut at (4, 8 and 32 rows, strips of 8 to
# 48 columns and of 128 to 1024 inputs, blocks of 256 terms on the CPU; tiles of 32 to 128 on CUDA).
SHAPES = [
    *itertools.product((0, 2, 9, 33), (0, 3), (0, 5)),
    (1, 1, 1),
    (1, 5, 17),
    (1, 70, 129),
    (2, 33, 64),
    (3, 4, 15),
    (5, 17, 257),
    (8, 65, 31),
    (9, 47, 49),
    (10, 1, 300),
    (17, 49, 48),
    (33, 96, 7),
    (12, 210, 230),
    (32, 70, 49),
    (33, 17, 257),
    (34, 210, 230),
    (37, 1, 300),
    (9, 5, 1100),
    (65, 31, 33),
    (129, 64, 72),
    (130, 16, 63),
    (259, 9, 10),
]


class Case:
    """Arguments of one call, and what it must give."""

    def __init__(
        self, T: int, O: int, K: int, dtype: torch.dtype, *, masked: bool, seed: int = 0
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        path = F64 if dtype == F64 else F32

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=F64)

        self.x, self.dy = normal(T, K).to(path), normal(T, O).to(path)
        self.weight, self.saliency = normal(O, K).to(dtype), normal(O, K).abs().to(path)
        self.mask = torch.rand(O, K, generator=draw) < 0.7 if masked else None

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        """y, dx and the saliency afterwards, in float64."""
        return _exact(self.dy, self.x, self.weight, self.mask, self.saliency)

    def check(self, y: Tensor, dx: Tensor, saliency: Tensor) -> None:
        """Compare with the exact result, errors relative to the sums of the terms' magnitudes."""
        (T, O), K, path = self.dy.shape, self.x.shape[1], self.x.dtype
        paths = (self.dy.abs(), self.x.abs(), self.saliency.abs())
        magnitudes = _exact(paths[0], paths[1], self.weight, self.mask, paths[2])
        for actual, exact, magnitude, terms in zip(
            (y, dx, saliency), self.exact(), magnitudes, (K, O, T), strict=True
        ):
            assert actual.dtype == path and actual.shape == exact.shape
            error = (actual.double() - exact).abs()
            assert (error <= sum_of_products(terms, path) * magnitude).all(), error.max()


def _exact(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, saliency: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x, weight, total = dy.double(), x.double(), weight.double(), saliency.double().clone()
    dx = reference.squared_linear_backward(dy, x, weight, mask, total)
    return reference.squared_linear(x, weight, mask), dx, total


def run_in_place(backend: Backend, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and the saliency, to which this adds."""
    y = backend("squared_linear", case.x, case.weight, case.mask)
    arguments = case.dy, case.x, case.weight, case.mask, case.saliency, True
    return y, backend("squared_linear_backward", *arguments), case.saliency


def run(backend: Backend, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The same on a copy of the case's saliency."""
    case = copy.copy(case)
    case.saliency = case.saliency.clone()
    return run_in_place(backend, case)


def test_the_reference_is_the_formula():
    case = Case(2, 3, 4, F64, masked=True)
    assert case.mask is not None
    x, dy, w, m = case.x, case.dy, case.weight, case.mask
    y, dx, saliency = case.exact()
    for t, o, k in itertools.product(range(2), range(3), range(4)):
        squared = w[o] ** 2 * m[o]
        assert y[t, o] == pytest.approx(sum(x[t, j] * squared[j] for j in range(4)))
        assert dx[t, k] == pytest.approx(sum(dy[t, i] * w[i, k] ** 2 * m[i, k] for i in range(3)))
        gradient = sum(dy[s, o] * x[s, k] for s in range(2))
        assert saliency[o, k] == pytest.approx(case.saliency[o, k] + gradient * squared[k])


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
def test_values(backend: Backend, dtype: torch.dtype, masked: bool):
    for shape in SHAPES:
        case = Case(*shape, dtype, masked=masked)
        case.check(*run(backend, case))


@pytest.mark.parametrize("T", [*range(1, 34), 65])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=lambda d: str(d)[6:])
def test_every_number_of_16_bits_is_squared_exactly(backend: Backend, dtype: torch.dtype, T: int):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype).view(256, 256)
    x, dy, saliency = torch.zeros(T, 256), torch.zeros(T, 256), torch.zeros(256, 256)
    x[T // 2], dy[T // 2] = 1, 1  # the other rows add 0, not 0 · W²: that is NaN where W² overflows
    backend("squared_linear_backward", dy, x, every, None, saliency, False)
    square = every.float().square()
    assert torch.equal(saliency.isnan(), square.isnan())
    assert torch.equal(saliency.nan_to_num(), square.nan_to_num())


@pytest.mark.parametrize("T", [*range(2, 34), 65])
def test_all_rows_are_summed_before_the_weight_multiplies_them(backend: Backend, T: int):
    weight = torch.full((5, 37), 1.5e19)
    x, dy, saliency = torch.ones(T, 37), torch.zeros(T, 5), torch.zeros(5, 37)
    dy[0], dy[-1] = 4, -3  # 4 W² is more than a float holds
    backend("squared_linear_backward", dy, x, weight, None, saliency, False)
    assert torch.equal(saliency, weight.square())


@pytest.mark.parametrize("T", [1, 3, 12, 36])
def test_saliency_adds_up_over_calls(backend: Backend, T: int):
    first, second = (Case(T, 20, 37, F32, masked=True, seed=seed) for seed in (1, 2))
    second.weight, second.mask = first.weight, first.mask
    second.saliency = run(backend, first)[2]
    second.check(*run(backend, second))


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
def test_saliency_is_written_over_whatever_it_held(
    backend: Backend, dtype: torch.dtype, masked: bool
):
    for shape in SHAPES:
        case = Case(*shape, dtype, masked=masked)
        case.saliency.zero_()
        y, dx, added = run(backend, case)
        written = torch.full_like(added, NAN)
        arguments = case.dy, case.x, case.weight, case.mask, written, True, False
        assert torch.equal(backend("squared_linear_backward", *arguments), dx)
        assert torch.equal(written, added)
        case.check(y, dx, written)


def test_saliency_of_any_strides_is_written(backend: Backend):
    case = Case(3, 20, 37, F32, masked=True)
    case.saliency.zero_()
    written = torch.full((37, 20), NAN).T
    backend(
        "squared_linear_backward", case.dy, case.x, case.weight, case.mask, written, True, False
    )
    assert torch.equal(written, run(backend, case)[2])


@pytest.mark.parametrize("T", [1, 12, 36])
def test_without_dx(backend: Backend, T: int):
    case = Case(T, 20, 37, F32, masked=False)
    saliency = case.saliency.clone()
    none = backend("squared_linear_backward", case.dy, case.x, case.weight, None, saliency, False)
    assert none.shape == (0,)
    assert torch.equal(saliency, run(backend, case)[2])


@pytest.mark.parametrize("junk", [NAN, INF, -INF])
@pytest.mark.parametrize("T", [1, 12, 36])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
def test_a_masked_weight_is_exactly_0_whatever_it_holds(
    backend: Backend, dtype: torch.dtype, T: int, junk: float
):
    case = Case(T, 20, 37, dtype, masked=True)
    assert case.mask is not None
    clean = run(backend, case)
    case.weight = case.weight.where(case.mask, junk)
    junked = run(backend, case)
    for a, b in zip(clean, junked, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(junked[2][~case.mask], case.saliency[~case.mask])


@pytest.mark.parametrize("T", [2, 12, 36])
@pytest.mark.parametrize("where", ["x", "dy", "weight", "saliency"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_nan_and_infinity_go_where_the_formula_takes_them(
    backend: Backend, T: int, where: str, value: float
):
    case = Case(T, 20, 37, F32, masked=True)
    getattr(case, where)[1, 3] = value
    for actual, exact in zip(run(backend, case), case.exact(), strict=True):
        assert torch.equal(actual.isnan(), exact.isnan())
        assert torch.equal(actual.isinf(), exact.isinf())
        assert exact.isfinite().any()


# ---- memory: strides, leading dimensions, surroundings


def surrounded(tensor: Tensor, ahead: int = 3) -> Tensor:
    """The same values amid NaN (ones for masks), not aligned to more than an element."""
    junk = True if tensor.dtype == torch.bool else NAN
    memory = torch.full((ahead + tensor.numel() + 67,), junk, dtype=tensor.dtype)
    inside = memory[ahead : ahead + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", [(1, 5, 17), (3, 9, 31), (11, 50, 51), (37, 50, 51), (2, 0, 4)])
def test_what_lies_around_the_arguments_is_neither_used_nor_changed(
    backend: Backend, shape: tuple[int, int, int], dtype: torch.dtype
):
    case = Case(*shape, dtype, masked=True)
    clean = copy.copy(case)
    names = ("x", "dy", "weight", "mask", "saliency")
    for name in names:
        setattr(case, name, surrounded(getattr(case, name)))
    clean.check(*run_in_place(backend, case))
    case.saliency.copy_(clean.saliency)
    for name in names:
        tensor = getattr(case, name)
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        memory = tensor.as_strided([size], [1], 0)
        around = torch.cat([memory[:3], memory[3 + tensor.numel() :]])
        assert around.all() if name == "mask" else around.isnan().all()


def strided(tensor: Tensor) -> Iterator[Tensor]:
    """The same values with other strides."""
    rows, columns = tensor.shape
    yield tensor.T.contiguous().T
    wide = tensor.new_zeros(rows, 2 * columns)
    wide[:, ::2] = tensor
    yield wide[:, ::2]
    tall = tensor.new_zeros(2 * rows + 1, columns)
    tall[1::2] = tensor
    yield tall[1::2]


@pytest.mark.parametrize("T", [3, 12, 36])
@pytest.mark.parametrize("name", ["x", "dy", "weight", "mask", "saliency"])
def test_strides(backend: Backend, name: str, T: int):
    case = Case(T, 20, 37, F32, masked=True)
    for other in strided(getattr(case, name)):
        assert not other.is_contiguous()
        changed = copy.copy(case)
        setattr(changed, name, other)
        if name != "saliency":
            changed.saliency = case.saliency.clone()
        case.check(*run_in_place(backend, changed))


@pytest.mark.parametrize("T", [3, 12, 36])
def test_expanded_arguments(backend: Backend, T: int):
    case = Case(T, 20, 37, F32, masked=True)
    assert case.mask is not None
    case.x, case.dy = case.x[:1].expand(T, -1), case.dy[:, :1].expand(-1, 20)
    case.mask, case.weight = case.mask[:1].expand(20, -1), case.weight[:, :1].expand(-1, 37)
    case.check(*run(backend, case))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (3, 1, 4), (2, 0), (0, 3)])
def test_leading_dimensions(backend: Backend, leading: tuple[int, ...]):
    flat = Case(torch.Size(leading).numel(), 20, 37, F32, masked=True)
    y, dx, saliency = run(backend, flat)
    flat.x, flat.dy = flat.x.reshape(*leading, 37), flat.dy.reshape(*leading, 20)
    shaped = run(backend, flat)
    assert shaped[0].shape == (*leading, 20) and torch.equal(shaped[0].reshape(y.shape), y)
    assert shaped[1].shape == (*leading, 37) and torch.equal(shaped[1].reshape(dx.shape), dx)
    assert torch.equal(shaped[2], saliency)


# ---- the same bits


@pytest.mark.parametrize("shape", [(1, 300, 257), (7, 130, 100), (40, 120, 300)])
def test_every_call_gives_the_same_bits(backend: Backend, shape: tuple[int, int, int]):
    case = Case(*shape, F32, masked=True)
    for a, b in zip(run(backend, case), run(backend, case), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 900, 257), (7, 500, 300), (30, 500, 300), (250, 500, 300)])
def test_threads_do_not_change_bits(backend: Backend, shape: tuple[int, int, int]):
    if backend.device != "cpu":
        return
    case = Case(*shape, F32, masked=True)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(backend, case))
    finally:
        torch.set_num_threads(threads)
    case.check(*results[0])
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


# ---- precision


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fewer_digits_where_they_are_asked_for(
    backend: Backend, precision: str, dtype: torch.dtype
):
    """Tensor cores keep those; everything else gives the bits that it gives without."""
    case = Case(129, 64, 72, dtype, masked=True)
    case.x, case.dy = case.x.abs(), case.dy.abs()
    y = backend("squared_linear", case.x, case.weight, case.mask, precision)
    sums = case.saliency.clone()
    arguments = case.dy, case.x, case.weight, case.mask, sums, True, True, precision
    got = y, backend("squared_linear_backward", *arguments), sums
    if backend.device in ("cuda", "emulated"):
        for actual, exact, terms in zip(got, case.exact(), (72, 64, 129), strict=True):
            bound = split_products(terms, precision) * exact
            assert ((actual.double() - exact).abs() <= bound).all()
    else:
        assert all(map(torch.equal, got, run(backend, case)))
