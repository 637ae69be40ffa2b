"""Sums, products, quotients and reductions, as operators, methods and functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from middles import Case, Rule, check, constant, gate, network, of
from nets import random_batch, random_masks
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.errors import NoRuleError

IMAGE, TOKENS = (4, 3, 3), (4, 3)
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


class Projection(nn.Module):
    """A linear layer written as a matrix product with a weight [K, O]."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(PROJECTION.float())
        self.bias = nn.Parameter(torch.linspace(0, 1, 3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


PROJECTION = torch.linspace(-1, 1, 12).view(4, 3).double()


def matmul(function: Callable[..., Any], scale: float = 1.0, shape: Any = (4,)) -> Case:
    square = scale**2 * PROJECTION**2
    return Case(
        lambda: Projection(function), shape,
        Rule(lambda p, z: p @ torch.ones_like(square), lambda p: p @ square,
             lambda p, z: p @ square),
    )  # fmt: skip


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
    "x @ W": matmul(lambda x, w, b: x @ w + b),
    "torch.matmul": matmul(lambda x, w, b: torch.matmul(x, w) + b, shape=(3, 4)),
    "Tensor.matmul": matmul(lambda x, w, b: x.matmul(w), shape=(2, 2, 4)),
    "torch.mm": matmul(lambda x, w, b: torch.mm(x, w)),
    "Tensor.mm": matmul(lambda x, w, b: b + x.mm(w)),
    "torch.addmm": matmul(lambda x, w, b: torch.addmm(b, x, w)),
    "Tensor.addmm": matmul(lambda x, w, b: b.addmm(x, w)),
    "addmm_": of(
        lambda x: x[:, :3].clone().addmm_(x, PROJECTION.to(x)), (4,),
        Rule(
            lambda p, z: p[:, :3] + p.sum(1, keepdim=True), lambda p: p[:, :3] + p @ PROJECTION**2,
            lambda p, z: p[:, :3] + p @ PROJECTION**2,
        ),
    ),
    "torch.addmm, scaled": matmul(
        lambda x, w, b: torch.addmm(b, mat1=x, mat2=w, beta=3, alpha=2), 2.0
    ),
}  # fmt: skip


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * torch.sigmoid(gate)


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    check(CASES[name])


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("name", ["x @ W", "Tensor.mm", "torch.addmm"])
def test_scores_of_transposed_weights(name, criterion):
    model = network(CASES[name].build, (4,), 1)
    twin = network(lambda: nn.Linear(4, 3), (4,), 1)
    twin.load_state_dict(model.state_dict() | {"operation.weight": model.operation.weight.mT})
    x, masks = random_batch((3,), 3).double(), random_masks(twin, 0.6)
    expected = pxfast.score(twin, x, criterion=criterion, masks=masks)
    masks["operation.weight"] = masks["operation.weight"].mT
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    for weight, score in scores.items():
        theirs = expected[weight].mT if weight == "operation.weight" else expected[weight]
        close(score, theirs, SMALL_NET[torch.float64], weight)


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
        (lambda x, one, two: torch.mm(one(x), two(x).mT), "no rule for these"),
    ],
)
def test_products_and_quotients_without_a_rule(function, message):
    model = nn.Sequential(nn.Linear(3, 4), Products(function), nn.LazyLinear(2))
    model(torch.randn(2, 3))
    with pytest.raises(NoRuleError, match=message):
        pxfast.score(model, torch.randn(2, 3))


def test_rounding_divisions_carry_no_path():
    model = nn.Sequential(nn.Linear(3, 4), Rounded(), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"never uses these weights.*1\.inner\.weight"):
        scores = pxfast.score(model, torch.randn(2, 3))
    assert "1.inner.weight" not in scores


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.div(self.inner(x), 2, rounding_mode="floor")
