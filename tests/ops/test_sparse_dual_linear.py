"""sparse_dual_linear on every instruction set and as the formula, against float64."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import instruction_set, instruction_sets, need
from tolerances import sum_of_products
from torch import Tensor

import pxfast.reference.sparse_dual_linear as reference
from pxfast import _native, ops

F32, F64 = torch.float32, torch.float64
NAN, INF = torch.nan, torch.inf


@pytest.fixture(params=["formula", *instruction_sets()])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What computes: the formula, as where there are no kernels, or an instruction set."""
    if request.param == "formula":
        monkeypatch.setattr(_native, "problem", "none wanted")
        yield request.param
        return
    need("cpu", _native.problem)
    with instruction_set(request.param):
        yield request.param


everywhere = pytest.mark.usefixtures("way")


class Case:
    """Arguments of one call, and what it must give."""

    def __init__(
        self,
        tokens: tuple[int, ...],
        K: int,
        O: int,
        *,
        squared: bool = False,
        density: float = 0.3,
        dtype: torch.dtype = F32,
        bias: bool = True,
    ) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=draw, dtype=F64).to(dtype)

        self.value, self.path = normal(*tokens, K), normal(*tokens, K).abs()
        self.weight, self.bias = normal(O, K), normal(O) if bias else None
        self.mask = torch.rand((O, K), generator=draw) < density
        self.squared = squared

    def arguments(self) -> dict[str, Any]:
        return vars(self).copy()

    def run(self) -> tuple[Tensor, Tensor]:
        """y and path_out."""
        return ops.sparse_dual_linear(**self.arguments())

    def exact(self, magnitudes: bool = False) -> tuple[Tensor, Tensor]:
        """The same in float64, or sums of the terms' magnitudes."""
        doubles = self.arguments()
        for name in ("value", "path", "weight", "bias"):
            if doubles[name] is not None:
                double = doubles[name].double()
                doubles[name] = double.abs() if magnitudes else double
        return reference.sparse_dual_linear(**doubles)

    def check(self) -> None:
        """Compare with the exact result, errors relative to the sums of the terms' magnitudes."""
        terms = self.weight.shape[1] + 1
        for actual, exact, magnitude in zip(
            self.run(), self.exact(), self.exact(magnitudes=True), strict=True
        ):
            assert actual.dtype == self.value.dtype and actual.is_contiguous()
            assert actual.shape == exact.shape == (*self.value.shape[:-1], len(self.weight))
            error = (actual.double() - exact).abs()
            assert (error <= sum_of_products(terms, actual.dtype) * magnitude).all()


def test_the_reference_is_the_formula():
    case = Case((2,), 3, 4, dtype=F64)
    w, m, bias = case.weight, case.mask, case.bias
    assert bias is not None
    for case.squared in (False, True):
        y, path_out = case.exact()
        for t, o in itertools.product(range(2), range(4)):
            kept = [k for k in range(3) if m[o, k]]
            value = sum((w[o, k] * case.value[t, k]).item() for k in kept) + bias[o].item()
            factors = {k: w[o, k].item() ** 2 if case.squared else 1.0 for k in kept}
            path = sum(factors[k] * case.path[t, k].item() for k in kept)
            assert y[t, o].item() == pytest.approx(value)
            assert path_out[t, o].item() == pytest.approx(path)


# Tiles are 24, 48 and 128 positions (float64: half of that); torch copies matrices in blocks of 60
SHAPES = [
    *itertools.product(((), (0,), (1,), (2, 0, 3)), (0, 1, 5), (0, 1, 4)),
    *(((tokens,), 33, 9) for tokens in (2, 15, 16, 17, 23, 24, 25, 47, 48, 49, 61, 127, 128, 129)),
    ((3, 43), 130, 61),
    ((2, 3, 5), 7, 70),
    ((257,), 64, 65),
]


@everywhere
@pytest.mark.parametrize("squared", [False, True], ids=["h", "joint"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
def test_values(dtype: torch.dtype, squared: bool):
    for shape in SHAPES:
        for bias, density in ((False, 0.3), (True, 0.05), (True, 0.7)):
            Case(*shape, squared=squared, dtype=dtype, bias=bias, density=density).check()


@everywhere
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_empty_and_full_masks(density: float):
    for squared in (False, True):
        case = Case((3, 5), 6, 7, squared=squared, density=density)
        case.check()
        y, path_out = case.run()
        if density == 0:
            assert case.bias is not None
            assert torch.equal(y, case.bias.expand_as(y)) and not path_out.any()


@everywhere
@pytest.mark.parametrize("junk", [NAN, INF, 1e30])
def test_a_masked_weight_is_exactly_0_whatever_it_holds(junk: float):
    for squared in (False, True):
        case = Case((3, 5), 6, 7, squared=squared)
        clean = case.run()
        case.weight = case.weight.where(case.mask, junk)
        assert all(map(torch.equal, case.run(), clean))


@everywhere
@pytest.mark.parametrize("narrow", list(itertools.product([False, True], repeat=3)))
def test_path_may_be_narrow(narrow: tuple[bool, ...]):
    case = Case((4, 17), 6, 7)
    for dim, constant in enumerate(narrow):
        if constant:
            case.path = case.path.narrow(dim, 0, 1)
    case.check()


def strided(tensor: Tensor) -> Iterator[Tensor]:
    """The same values with other strides."""
    yield tensor.mT.contiguous().mT
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide[..., ::2] = tensor
    yield wide[..., ::2]
    tall = tensor.new_zeros(2 * tensor.shape[0] + 1, *tensor.shape[1:])
    tall[1::2] = tensor
    yield tall[1::2]


@everywhere
@pytest.mark.parametrize("name", ["value", "path", "weight", "mask"])
def test_strides(name: str):
    case = Case((3, 17), 6, 7)
    for other in strided(getattr(case, name)):
        assert not other.is_contiguous()
        changed = copy.copy(case)
        setattr(changed, name, other)
        changed.check()


@everywhere
def test_expanded_arguments():
    case = Case((3, 17), 6, 7)
    assert case.bias is not None
    case.value, case.path = case.value[:1].expand(3, 17, 6), case.path[:, :1].expand(3, 17, 6)
    case.mask, case.bias = case.mask[:1].expand(7, 6), case.bias[:1].expand(7)
    case.check()


def test_shapes_alone():
    meta = {
        name: argument.to("meta") if isinstance(argument, Tensor) else argument
        for name, argument in Case((3, 17), 6, 7).arguments().items()
    }
    y, path_out = ops.sparse_dual_linear(**meta)
    assert y.is_meta and y.shape == path_out.shape == (3, 17, 7)


# ---- bad input

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "weight_dims": (
        {"weight": torch.ones(4, 3, 1)}, "weight must have shape [O, K], got [4, 3, 1]"
    ),
    "weight_dtype": (
        {"weight": torch.ones(4, 3).bfloat16()}, "weight must be float32 or float64, got bfloat16"
    ),
    "value_inputs": (
        {"value": torch.ones(2, 5, 4)}, "value must have shape [..., 3], got [2, 5, 4]"
    ),
    "value_dims": ({"value": torch.ones(())}, "value must have shape [..., 3], got []"),
    "value_dtype": (
        {"value": torch.ones(2, 5, 3, dtype=F64)},
        "value must have weight's dtype float32, got float64",
    ),
    "path_shape": (
        {"path": torch.ones(2, 4, 3)},
        "path must have value's shape [2, 5, 3] or size 1 instead, got [2, 4, 3]",
    ),
    "path_dims": (
        {"path": torch.ones(5, 3)},
        "path must have value's shape [2, 5, 3] or size 1 instead, got [5, 3]",
    ),
    "path_dtype": (
        {"path": torch.ones(2, 5, 3).half()}, "path must have weight's dtype float32, got float16"
    ),
    "path_device": (
        {"path": torch.ones(2, 5, 3, device="meta")},
        "path must be on weight's device cpu, got meta",
    ),
    "mask_shape": (
        {"mask": torch.ones(3, 4, dtype=torch.bool)},
        "mask must have weight's shape [4, 3], got [3, 4]",
    ),
    "mask_dtype": ({"mask": torch.ones(4, 3)}, "mask must be bool, got float32"),
    "mask_device": (
        {"mask": torch.ones(4, 3, dtype=torch.bool, device="meta")},
        "mask must be on weight's device cpu, got meta",
    ),
    "bias_shape": ({"bias": torch.ones(3)}, "bias must have shape [4], got [3]"),
    "bias_dtype": (
        {"bias": torch.ones(4, dtype=F64)}, "bias must have weight's dtype float32, got float64"
    ),
}  # fmt: skip


@everywhere
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_named(bad: str):
    change, message = BAD[bad]
    with pytest.raises(ValueError) as error:
        ops.sparse_dual_linear(**(Case((2, 5), 3, 4).arguments() | change))
    assert str(error.value) == f"sparse_dual_linear: {message}"


# ---- the rule


def test_when_it_pays(monkeypatch: pytest.MonkeyPatch):
    need("cpu", _native.problem)
    pays, weight, value = ops.sparse_dual_linear_pays, torch.ones(300, 300), torch.ones(2, 64, 300)
    with monkeypatch.context() as one:
        one.setattr(torch, "get_num_threads", lambda: 1)
        assert pays(value, weight, 0.05) and pays(value.double(), weight.double(), 0.05)
        assert not pays(value, weight, 0.051)
        assert not pays(value[:, 1:], weight, 0.05)
        assert not pays(value, weight[:299], 0.05)
        assert not pays(value.bfloat16(), weight.bfloat16(), 0.05)
        assert not pays(value.double(), weight, 0.05)
        assert not pays(value.to("meta"), weight.to("meta"), 0.05)
        one.setattr(_native, "problem", "none wanted")
        assert not pays(value, weight, 0.05)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not pays(value, weight, 0.05)
    assert pays(torch.ones(128, 600), torch.ones(600, 600), 0.05)
