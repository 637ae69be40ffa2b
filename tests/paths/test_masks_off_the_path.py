"""Masks of weights that no path crosses: the real network, and so its gates, are masked all the
same."""

from __future__ import annotations

import nets
import pytest
import torch
import torch.nn.functional as F
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.reference import px


class Pooled(nn.Module):
    """A learned query looks at all tokens, nearer ones more: two layers see no input."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.places = (
            nn.Parameter(torch.randn(1, 2, 4)),
            nn.Parameter(torch.randn(3, 4)),
        )
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.near, self.head = nn.Linear(4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.query).expand(len(x), -1, -1)
        bias = self.near(self.places).T
        return self.head(F.scaled_dot_product_attention(q, self.k(x), self.v(x), attn_mask=bias))


@pytest.mark.filterwarnings("ignore:the output never uses these weights")
@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_gates_are_those_of_the_masked_network(criterion, zeroed):
    model = nets.seeded(Pooled, 1).double()
    x, masks = nets.random_batch((3, 4)).double(), nets.random_masks(model, 0.5)
    expected = px.score(model, x, criterion=criterion, masks=masks)
    if zeroed:
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert list(scores) == list(expected) == ["k.weight", "v.weight", "head.weight"]
    for name, score in scores.items():
        close(score, expected[name], SMALL_NET[torch.float64], name)
