"""torch.einsum of one tensor with a path, with weights, and with other tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from middles import Case, Rule, as_it_is, check, constant, of
from torch import Tensor, nn

import pxfast
from pxfast.errors import NoRuleError

SHAPE = (4, 3, 3)
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "a permutation": lambda x: torch.einsum("nchw->nwhc", x),
    "a sum": lambda x: torch.einsum("nchw->nc", x),
    "an ellipsis": lambda x: torch.einsum("n...w->nw...", x),
    "without an arrow": lambda x: torch.einsum("ancb", x),
    "spaces": lambda x: torch.einsum(" n c h w -> n h c", [x]),
    "a trace of an outer product": lambda x: torch.einsum(
        "nchw,n->nhw", x, torch.ones(len(x)).to(x)
    ),
}
WEIGHT = torch.linspace(-1, 1, 12).view(3, 4)


class Weighted(nn.Module):
    def __init__(self, equation: str, weight: Tensor, first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.equation, self.first = equation, first

    def forward(self, x: Tensor) -> Tensor:
        pair = (self.weight, x) if self.first else (x, self.weight)
        return torch.einsum(self.equation, *pair)


def by_weight(equation: str, weight: Tensor, first: bool = False) -> Case:
    """The same products of the squares."""

    def products(squares: Tensor) -> Callable[..., Tensor]:
        def apply(path: Tensor, _: Tensor | None = None) -> Tensor:
            return torch.einsum(equation, *((squares, path) if first else (path, squares)))

        return apply

    ones, squares = products(torch.ones(weight.shape).double()), products(weight.double() ** 2)
    return Case(lambda: Weighted(equation, weight, first), SHAPE, Rule(ones, squares, squares))


CASES = {
    **{name: of(function, SHAPE, as_it_is(function, SHAPE)) for name, function in PLAIN.items()},
    "a linear layer": by_weight("nchw,oc->nohw", WEIGHT),
    "a weight [in, out]": by_weight("nchw,co->nhwo", WEIGHT.T.contiguous()),
    "a weight in front": by_weight("oc,nchw->nohw", WEIGHT, True),
    "over two letters": by_weight("nchw,ohw->nco", torch.linspace(-1, 1, 18).view(2, 3, 3)),
    "a scale by channel": of(
        lambda x: torch.einsum("nchw,c->nchw", x, torch.linspace(-1, 2, 4).to(x)), SHAPE,
        constant(torch.linspace(-1, 2, 4).double().view(4, 1, 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    check(CASES[name])


@pytest.mark.parametrize(
    "equation",
    [lambda x: torch.einsum("nchh->nc", x), lambda x: torch.einsum("nchw,nc,n", x, x, x)],
)
def test_equations_without_a_rule(equation):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), Function(equation))
    with pytest.raises(NoRuleError, match=r"torch.einsum\('nch.*has no rule \(in 1 \(Function\)"):
        pxfast.score(model, torch.randn(2, 2, 3, 3))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
