"""Sums, multiples, interpolations and gates by hand, as operators, methods and functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from middles import Case, Rule, check, constant, gate, of
from torch import Tensor, nn

import pxfast

CONSTANT = torch.tensor([0.5, -2.0, 1.5, 3.0], dtype=torch.float64)


class Own(nn.Module):
    """A function of the input and of parameters and a buffer of its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.gamma = nn.Parameter(CONSTANT.float())
        self.scalar = nn.Parameter(torch.tensor(0.75))
        self.register_buffer("buffer", CONSTANT.float().flip(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self)


def own(function: Callable[..., Any], factor: Tensor | float) -> Case:
    return Case(lambda: Own(function), (4,), constant(factor))


def plus(function: Callable[[Tensor], Tensor], alpha: float = 1.0) -> Case:
    """x and alpha times x with its entries in reverse, added."""

    def both(path: Tensor, square: float = 1.0) -> Tensor:
        return path + square * path.flip(1)

    return of(
        function, (4,),
        Rule(lambda p, z: both(p), lambda p: both(p, alpha**2), lambda p, z: both(p, alpha**2)),
    )  # fmt: skip


def inplace(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """A function that changes its argument; what the argument has become."""

    def apply(x: Tensor) -> Tensor:
        x = x.clone()
        function(x)
        return x

    return apply


def plus_equal(x: Tensor) -> Tensor:
    x = x.clone()
    x += x.flip(1)
    return x


def minus_equal(x: Tensor) -> Tensor:
    x = x.clone()
    x -= x.flip(1)
    return x


def times_equal(x: Tensor) -> Tensor:
    x = x.clone()
    x *= 3
    x /= 2.0
    return x


BOTH = {
    "x + y": lambda x: x + x.flip(1),
    "x - y": lambda x: x - x.flip(1),
    "x += y": plus_equal,
    "x -= y": minus_equal,
    "torch.add": lambda x: torch.add(x, x.flip(1)),
    "Tensor.add": lambda x: x.add(x.flip(1)),
    "Tensor.add_": inplace(lambda x: x.add_(x.flip(1))),
    "torch.sub": lambda x: torch.sub(x, x.flip(1)),
    "Tensor.sub": lambda x: x.sub(x.flip(1)),
    "Tensor.sub_": inplace(lambda x: x.sub_(x.flip(1))),
    "torch.subtract": lambda x: torch.subtract(x, x.flip(1)),
    "Tensor.subtract": lambda x: x.subtract(x.flip(1)),
    "Tensor.subtract_": inplace(lambda x: x.subtract_(x.flip(1))),
    "torch.rsub": lambda x: torch.rsub(x.flip(1), x),
    "sum of a list": lambda x: sum([x, x.flip(1)]),
    "python's sum of three": lambda x: sum((x, x.flip(1), torch.zeros(4).to(x))),
}
DOUBLED = {
    "torch.add, alpha": lambda x: torch.add(x, x.flip(1), alpha=2),
    "Tensor.add_, alpha": inplace(lambda x: x.add_(x.flip(1), alpha=2)),
    "torch.sub, alpha": lambda x: torch.sub(x, x.flip(1), alpha=2),
    "Tensor.sub, alpha": lambda x: x.sub(x.flip(1), alpha=-2),
    "2 y + x": lambda x: 2 * x.flip(1) + x,
    "addcmul": lambda x: torch.addcmul(x, x.flip(1), torch.tensor(4.0).to(x), value=0.5),
    "Tensor.addcmul": lambda x: x.addcmul(torch.tensor([1.0]).to(x), x.flip(1), value=2),
    "addcmul_": inplace(lambda x: x.addcmul_(x.flip(1), torch.tensor(2.0).to(x))),
    "addcdiv": lambda x: torch.addcdiv(x, x.flip(1), torch.tensor(0.5).to(x)),
    "Tensor.addcdiv": lambda x: x.addcdiv(x.flip(1), torch.tensor(2.0).to(x), value=4),
    "addcdiv_": inplace(lambda x: x.addcdiv_(x.flip(1), torch.tensor(0.5).to(x))),
}
UNCHANGED = {
    "x + c": lambda x: x + CONSTANT,
    "c + x": lambda x: CONSTANT + x,
    "c - x": lambda x: 1 - x,
    "c tensor - x": lambda x: CONSTANT - x,
    "x - c": lambda x: x - 3.5,
    "torch.rsub by a number": lambda x: torch.rsub(x, 2.0),
    "x += c": inplace(lambda x: x.add_(CONSTANT)),
    "-x": lambda x: -x,
    "+x": lambda x: +x,
    "abs": abs,
    "torch.neg": torch.neg,
    "Tensor.neg": lambda x: x.neg(),
    "neg_": lambda x: torch.neg_(x.clone()),
    "Tensor.neg_": lambda x: x.clone().neg_(),
    "torch.negative": torch.negative,
    "Tensor.negative": lambda x: x.negative(),
    "negative_": lambda x: torch.negative_(x.clone()).negative_(),
    "torch.abs": torch.abs,
    "Tensor.abs": lambda x: x.abs(),
    "abs_": lambda x: torch.abs_(x.clone()).abs_(),
    "torch.positive": torch.positive,
    "Tensor.positive": lambda x: x.positive(),
    "x + 0 tensors": lambda x: x + torch.zeros_like(x) + x.new_zeros(4),
    "x + noise": lambda x: x + 0 * torch.randn_like(x),
}
TRIPLED = {
    "3 * x": lambda x: 3 * x,
    "x * 3": lambda x: x * torch.tensor(3),
    "x *= 3": lambda x: times_equal(x) * 2,
    "torch.mul": lambda x: torch.mul(x, 3.0),
    "Tensor.mul": lambda x: x.mul(3),
    "Tensor.mul_": inplace(lambda x: x.mul_(-3)),
    "torch.multiply": lambda x: torch.multiply(torch.tensor(3.0), x),
    "Tensor.multiply": lambda x: x.multiply(3),
    "Tensor.multiply_": inplace(lambda x: x.multiply_(3)),
    "x / c": lambda x: x / (1 / 3),
    "x /= c": inplace(lambda x: x.__itruediv__(torch.tensor(1 / 3).to(x))),
    "torch.div": lambda x: torch.div(x, -1 / 3),
    "Tensor.div": lambda x: x.div(1 / 3),
    "Tensor.div_": inplace(lambda x: x.div_(1 / 3)),
    "torch.divide": lambda x: torch.divide(x, 1 / 3),
    "Tensor.divide": lambda x: x.divide(torch.full((4,), 1 / 3).double()),
    "Tensor.divide_": inplace(lambda x: x.divide_(1 / 3)),
    "torch.true_divide": lambda x: torch.true_divide(x, 1 / 3),
    "Tensor.true_divide": lambda x: x.true_divide(1 / 3),
    "Tensor.true_divide_": inplace(lambda x: x.true_divide_(1 / 3)),
}
OWN: dict[str, tuple[Callable[..., Any], Tensor | float]] = {
    "LayerScale": (lambda x, own: own.gamma * x, CONSTANT),
    "x.mul(gamma)": (lambda x, own: x.mul(own.gamma), CONSTANT),
    "a buffer": (lambda x, own: x * own.buffer, CONSTANT.flip(0)),
    "a scalar parameter": (lambda x, own: x * own.scalar, 0.75),
    "divided by a parameter": (lambda x, own: x / own.gamma, 1 / CONSTANT),
    "products of parameters": (
        lambda x, own: (own.gamma * own.buffer) * x, CONSTANT * CONSTANT.flip(0)
    ),
    "a power of a parameter": (
        lambda x, own: x * own.scalar.exp(), torch.tensor(0.75).double().exp()
    ),
    "a sigmoid of a parameter": (
        lambda x, own: x * torch.sigmoid(own.gamma), torch.sigmoid(CONSTANT)
    ),
    "an affine layer": (lambda x, own: x * own.gamma + own.buffer, CONSTANT),
    "addcmul of parameters": (lambda x, own: torch.addcmul(own.buffer, own.gamma, x), CONSTANT),
    "addcmul, value": (
        lambda x, own: torch.addcmul(own.buffer, own.gamma, x, value=2), 2 * CONSTANT
    ),
    "lerp from a parameter": (lambda x, own: torch.lerp(own.buffer, x, 0.3), 0.3),
    "a parameter at a place": (lambda x, own: x * own.gamma[2], 1.5),
    "in place": (lambda x, own: x.clone().mul_(own.gamma), CONSTANT),
    "cast to the input's dtype": (lambda x, own: x * own.gamma.float().to(x), CONSTANT),
    "two of them": (lambda x, own: own.scalar * (x * own.gamma), 0.75 * CONSTANT),
}  # fmt: skip
CASES = {
    **{name: plus(function) for name, function in BOTH.items()},
    **{name: plus(function, 2.0) for name, function in DOUBLED.items()},
    **{name: of(function, (4,), gate(torch.ones_like)) for name, function in UNCHANGED.items()},
    **{name: of(function, (4,), constant(3.0)) for name, function in TRIPLED.items()},
    **{name: own(*case) for name, case in OWN.items()},
    "abs alone": of(lambda x: torch.Tensor.__abs__(x), (4,), gate(torch.ones_like)),
    "lerp": of(
        lambda x: torch.lerp(x, x.flip(1), 0.25), (4,),
        Rule(
            lambda p, z: p + p.flip(1), lambda p: 0.5625 * p + 0.0625 * p.flip(1),
            lambda p, z: 0.5625 * p + 0.0625 * p.flip(1),
        ),
    ),
    "Tensor.lerp": of(
        lambda x: x.lerp(x.flip(1), CONSTANT.to(x)), (4,),
        Rule(
            lambda p, z: p + p.flip(1),
            lambda p: (1 - CONSTANT) ** 2 * p + CONSTANT**2 * p.flip(1),
            lambda p, z: (1 - CONSTANT) ** 2 * p + CONSTANT**2 * p.flip(1),
        ),
    ),
    "lerp_": of(
        lambda x: x.clone().lerp_(torch.zeros(4).to(x), 0.5), (4,), constant(0.5)
    ),
    "a factor of the sample": of(
        lambda x: x * (x > 0), (4,), gate(lambda z: (z > 0).double())
    ),
    "the sign": of(lambda x: torch.sign(x) * x + 0 * x.sign(), (4,), gate(torch.ones_like)),
    "a quotient by a gate": of(
        lambda x: x / (1 + x.abs()), (4,), gate(lambda z: 1 / (1 + z.abs()) ** 2)
    ),
    "a quotient by its own largest entry": of(
        lambda x: x / x.abs().amax(1, keepdim=True), (4,),
        gate(lambda z: 1 / z.abs().amax(1, keepdim=True) ** 2),
    ),
    "swish by hand": of(
        lambda x: x * torch.sigmoid(x), (4,), gate(lambda z: torch.sigmoid(z) ** 2)
    ),
    "swish, scaled": of(
        lambda x: torch.sigmoid(1.702 * x) * x, (4,), gate(lambda z: torch.sigmoid(1.702 * z) ** 2)
    ),
    "mish by hand": of(
        lambda x: x * torch.tanh(F.softplus(x)), (4,),
        gate(lambda z: torch.tanh(F.softplus(z)) ** 2),
    ),
    "hard swish by hand": of(
        lambda x: x * F.relu6(x + 3) / 6, (4,),
        Rule(
            lambda p, z: p * F.relu6(z + 3) ** 2, lambda p: p / 36,
            lambda p, z: p * F.relu6(z + 3) ** 2 / 36,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    check(CASES[name])


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.div(self.inner(x), 2, rounding_mode="floor")


def test_rounding_divisions_carry_no_path():
    model = nn.Sequential(nn.Linear(3, 4), Rounded(), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"never uses these weights.*1\.inner\.weight"):
        scores = pxfast.score(model, torch.randn(2, 3))
    assert "1.inner.weight" not in scores
