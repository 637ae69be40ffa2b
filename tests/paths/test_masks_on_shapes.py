"""A pass on shapes alone makes no masked weights."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import Tensor, nn

import pxfast
from pxfast.paths.weight import Weight


class Product(nn.Module):
    """A weight that the model multiplies by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(75, 5)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x @ self.weight))


def transposed() -> nn.Module:
    layers = (nn.ConvTranspose2d(1, 3, 2), nn.ReLU(), nn.Flatten(), Product())
    return nn.Sequential(*layers).eval()


NETS = [nets.NETS["conv"], nets.NETS["mlp"], nets.Net(transposed, (1, 4, 4))]


@pytest.mark.parametrize("net", NETS)
def test_masked_weights_are_made_where_values_or_scores_need_them(net: nets.Net, monkeypatch):
    model, x = net.build(), nets.random_batch(net.shape, 2)
    masks = nets.random_masks(model, 0.7)
    made: list[tuple[str, str]] = []
    masked = Weight.masked

    def spy(weight: Weight) -> Tensor:
        assert weight.source is not None
        made.append((weight.source.name, weight.weights.purpose))
        return masked(weight)

    monkeypatch.setattr(Weight, "masked", spy)
    scores = pxfast.score(model, x, masks=masks)
    assert all(torch.isfinite(score).all() for score in scores.values())
    for name in scores:  # the data pass once at most, and g twice, forward and backward
        assert len([source for source, _ in made if source == name]) <= 3
