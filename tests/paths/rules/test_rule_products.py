"""Products and quotients of two path tensors: which factor is the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from middles import Case, check
from torch import Tensor, nn

import pxfast
from pxfast.errors import NoRuleError

IMAGE = (4, 3, 3)


class Products(nn.Module):
    """Everything that can be multiplied by a path: what px_rules says of the two factors."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.one, self.two)


class Excite(nn.Module):
    """Squeeze-and-excite, with a pooling, an activation inside and a gate to choose."""

    def __init__(
        self, squeeze: Callable[[Tensor], Tensor], inner: nn.Module, gate: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.squeeze, self.inner, self.gate = squeeze, inner, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.inner(self.reduce(self.squeeze(x)))))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def glu(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    return F.glu(torch.cat([one(x), two(x)], 1), dim=1)


def glu_in_reference(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    return one(x) * torch.sigmoid(two(x))


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * torch.sigmoid(gate)


class Dead(nn.Module):
    """Squeeze-and-excite in a residual branch that a learned scale of 0 has switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.excite = Excite(pooled, nn.ReLU(), torch.sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.excite(x * self.gamma)


def product(function: Callable[..., Any], expected: Callable[..., Any] | None = None) -> Case:
    return Case(
        lambda: Products(function), (4,), None if expected is None else lambda: Products(expected)
    )


def excite(*parts: Any) -> Case:
    return Case(lambda: Excite(*parts), IMAGE)


CASES = {
    "a product with a gate": product(lambda x, one, two: one(x) * torch.sigmoid(two(x))),
    "a product with tanh": product(lambda x, one, two: torch.tanh(one(x)) * two(x)),
    "sigmoid before tanh": product(
        lambda x, one, two: torch.tanh(one(x)) * torch.sigmoid(two(x))
    ),
    "SwiGLU": product(lambda x, one, two: F.silu(one(x)) * two(x)),
    "GEGLU": product(lambda x, one, two: two(x) * F.gelu(one(x))),
    "a leaky gate": product(lambda x, one, two: two(x) * F.leaky_relu(one(x), 0.2)),
    "a PReLU-like gate": product(lambda x, one, two: F.elu(one(x)) * two(x) * 3),
    "computed from the other": product(lambda x, one, two: x * one(x)),
    "a gate that is scaled": product(lambda x, one, two: (2 * torch.sigmoid(one(x))) * two(x)),
    "highway": product(
        lambda x, one, two: torch.sigmoid(one(x)) * two(x) + (1 - torch.sigmoid(one(x))) * x
    ),
    "two gates": product(lambda x, one, two: x * torch.sigmoid(one(x)) * torch.sigmoid(two(x))),
    "F.glu": product(glu, glu_in_reference),
    "GLU": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.GLU()), (4,),
        lambda: nn.Sequential(nn.Linear(4, 6), Halves()),
    ),
    "squeeze-and-excite": excite(pooled, nn.ReLU(), torch.sigmoid),
    "in a dead branch": Case(Dead, IMAGE),
    "with a hard sigmoid": excite(nn.AdaptiveAvgPool2d(1), nn.SiLU(), F.hardsigmoid),
    "with max-pooling": excite(nn.AdaptiveMaxPool2d(1), nn.ReLU(), torch.sigmoid),
    "without squeezing": excite(nn.Identity(), nn.GELU(), torch.sigmoid),
    "with tanh": excite(pooled, nn.LeakyReLU(0.3), torch.tanh),
    "without an activation": excite(pooled, nn.ReLU(), nn.Identity()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    check(CASES[name])


AMBIGUOUS = {
    "a square": lambda x, one, two: one(x) * two(x),
    "two ReLUs": lambda x, one, two: F.relu(one(x)) * F.relu(two(x)),
    "two sigmoids": lambda x, one, two: torch.sigmoid(one(x)) * torch.sigmoid(two(x)),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_product_without_a_gate_is_an_error(name):
    model = nn.Sequential(nn.Linear(3, 4), Products(AMBIGUOUS[name]), nn.Linear(4, 2))
    with pytest.raises(NoRuleError, match=r"which factor of a product is the gate \(in 1 "):
        pxfast.score(model, torch.randn(2, 3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, one, two: torch.sigmoid(one(x)) / two(x), "quotient whose divisor carries"),
        (lambda x, one, two: torch.matmul(one(x)[:, None], two(x)[..., None])[:, 0], "gate tensor"),
        (lambda x, one, two: torch.bmm(one(x)[:, None], two(x)[:, None].mT)[:, 0], "gate tensor"),
        (lambda x, one, two: one(x)[:, None].bmm(two(x)[:, None].mT)[:, 0], "gate tensor"),
        (lambda x, one, two: torch.mm(one(x), two(x).mT), "mm has no rule for operands of shapes"),
    ],
)
def test_products_and_quotients_without_a_rule(function, message):
    model = nn.Sequential(nn.Linear(3, 4), Products(function), nn.LazyLinear(2))
    model(torch.randn(2, 3))
    with pytest.raises(NoRuleError, match=message):
        pxfast.score(model, torch.randn(2, 3))
