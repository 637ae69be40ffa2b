"""Activations in place: the value is overwritten, and no gate that is still needed with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pxfast

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (F.relu, lambda x: F.relu(x, inplace=True)),
    "relu by position": (F.relu, lambda x: F.relu(x, True)),
    "relu_": (F.relu, torch.relu_),
    "relu6": (F.relu6, lambda x: F.relu6(x, inplace=True)),
    "silu": (F.silu, lambda x: F.silu(x, inplace=True)),
    "leaky_relu_": (F.leaky_relu, F.leaky_relu_),
    "elu": (lambda x: F.elu(x, 0.7), lambda x: F.elu(x, 0.7, True)),
    "hardswish": (F.hardswish, lambda x: F.hardswish(x, inplace=True)),
    "sigmoid_": (torch.sigmoid, Tensor.sigmoid_),
}


class Twice(nn.Module):
    """SiLU of a map, which is then overwritten by another activation of itself."""

    def __init__(self, second: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 5, 3), nn.Linear(5 * 9, 3)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        once = F.silu(z)
        return self.last((once + self.second(z)).flatten(1))


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_gate_survives_that_its_input_is_overwritten(name: str, criterion: str) -> None:
    apart, inplace = ACTIVATIONS[name]
    torch.manual_seed(0)
    model, images = Twice(apart).eval(), torch.randn(4, 2, 5, 5)
    masks = {"last.weight": torch.rand(3, 45) < 0.7}  # so that px reads the data
    expected = pxfast.score(model, images, criterion=criterion, masks=masks)
    model.second = inplace
    scores = pxfast.score(model, images, criterion=criterion, masks=masks)
    for weight in expected:
        torch.testing.assert_close(scores[weight], expected[weight], rtol=0, atol=0)
