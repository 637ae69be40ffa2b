"""Gates on the input itself, and gates whose product the output never uses."""

from __future__ import annotations

import pytest
import torch
from nets import random_batch, random_masks, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.reference import px

CRITERIA = ["px", "px-joint"]


class OnTheInput(nn.Module):
    """A gate that multiplies the input, ahead of the first weight on its value path."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * torch.sigmoid(self.gate(x)))


class Unused(OnTheInput):
    """The same beside a gated product that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.lost, self.of_lost = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.lost(x) * torch.sigmoid(self.of_lost(x))
        return super().forward(x)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.filterwarnings("ignore:the output never uses")
@pytest.mark.parametrize("kind", [OnTheInput, Unused])
def test_scores_equal_the_reference(kind, criterion, masked):
    model = seeded(kind, 1).double()
    x = random_batch((4,), 3).double()
    masks = random_masks(model, 0.6) if masked else {}
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    used = {name: mask for name, mask in masks.items() if name in scores}
    expected = px.score(model, x, criterion=criterion, masks=used)
    assert list(scores) == list(expected) == ["gate.weight", "head.weight"]
    for name, score in expected.items():
        close(scores[name], score, SMALL_NET[torch.float64], name)
    close(scores["gate.weight"].sum(), torch.ones(()), SMALL_NET[torch.float64])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_of_products_that_lead_nowhere_are_named(criterion):
    model = seeded(Unused, 1).double()
    with pytest.warns(
        UserWarning, match=r"never uses these weights.*lost\.weight, of_lost\.weight"
    ):
        scores = pxfast.score(model, random_batch((4,), 3).double(), criterion=criterion)
    assert scores.provenance["unused"] == ["lost.weight", "of_lost.weight"]
