"""Matrix products with a weight [K, O]: a linear layer in other words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from middles import Case, Rule, check, network, of
from nets import random_batch, random_masks
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast

PROJECTION = torch.linspace(-1, 1, 12).view(4, 3).double()


class Projection(nn.Module):
    """A linear layer written as a matrix product with a weight [K, O]."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(PROJECTION.float())
        self.bias = nn.Parameter(torch.linspace(0, 1, 3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def matmul(function: Callable[..., Any], scale: float = 1.0, shape: Any = (4,)) -> Case:
    square = scale**2 * PROJECTION**2
    return Case(
        lambda: Projection(function), shape,
        Rule(lambda p, z: p @ torch.ones_like(square), lambda p: p @ square,
             lambda p, z: p @ square),
    )  # fmt: skip


CASES = {
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
