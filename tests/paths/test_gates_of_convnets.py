"""How convolutional networks gate: between branches, at another resolution, in place."""

from __future__ import annotations

import nets
import pytest
import torch
import torch.nn.functional as F
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.reference import px


class Gated(nn.Module):
    """Two branches and what they come together in, on [N, 2, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 1)
        self.squeeze = nn.Conv2d(4, 3, 1)
        self.excite = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.join(x).mean((2, 3)))


class Enlarged(Gated):
    def join(self, x: Tensor) -> Tensor:
        small = torch.sigmoid(self.second(F.avg_pool2d(x, 2)))
        return self.first(x) * F.interpolate(small, size=(8, 8), mode="nearest")


class Split(Gated):
    def join(self, x: Tensor) -> Tensor:
        branches = torch.stack([self.first(x).relu(), self.second(x).relu()], 1)
        squeezed = self.squeeze(branches.sum(1).mean((2, 3), keepdim=True)).relu()
        attention = torch.softmax(self.excite(squeezed).reshape(-1, 2, 4, 1, 1), dim=1)
        return (branches * attention).sum(1)


class Efficient(Gated):
    def join(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.second(x.mean((2, 3), keepdim=True)))
        return self.first(x) * gate.expand_as(x)


class InPlace(Gated):
    def join(self, x: Tensor) -> Tensor:
        y = F.gelu(x).mul_(1.7)
        return self.first(y) + x


@pytest.mark.filterwarnings("ignore:the output never uses these weights")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("network", [Enlarged, Split, Efficient, InPlace])
def test_scores_equal_the_reference(network, criterion, masked):
    model = nets.seeded(lambda: network().double(), 1)
    x = nets.random_batch((2, 8, 8), 3).double()
    masks = nets.random_masks(model, 0.7) if masked else None
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    expected = px.score(model, x, criterion=criterion, masks=masks)
    assert list(scores) == list(expected)
    for name, score in scores.items():
        close(score, expected[name], SMALL_NET[torch.float64], name)
