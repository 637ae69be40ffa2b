"""A network whose inner layer has a peculiar weight, and its plain twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import scored
import torch
import torch.nn.functional as F
from nets import seeded
from tolerances import SMALL_NET
from torch import Tensor, nn

SHAPE = (6, 5)  # of the inner linear layer's weight


def keep(shape: Any = SHAPE, seed: int = 0, density: float = 0.6) -> Tensor:
    """A random 0/1 mask."""
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density).float()
    mask.flatten(1)[:, 0] = 1
    return mask


class Net(nn.Module):
    """A layer with a peculiar weight between two plain ones."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 5), inner, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.inner(F.relu(self.first(x)))))


def net(inner: Callable[[], nn.Module]) -> nn.Module:
    return seeded(lambda: Net(inner()), 0).double()


def plain(model: nn.Module, weight: Tensor) -> nn.Module:
    """The same network with a plain inner layer that holds this weight."""
    twin = net(lambda: nn.Linear(5, 6))
    with torch.no_grad():
        for name in ("first.weight", "first.bias", "last.weight", "last.bias", "inner.bias"):
            twin.get_parameter(name).copy_(model.get_parameter(name))
        twin.inner.weight.copy_(weight)
    return twin


def used_weight(layer: nn.Module) -> Tensor:
    """The weight that a layer applies, read off its response to unit vectors."""
    return (layer(torch.eye(5, dtype=torch.float64)) - layer.bias).T.detach()


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same scores within what float64 rounds off small networks."""
    scored.assert_same(actual, expected, SMALL_NET[torch.float64])


class MaskStep(nn.Module):
    """A parametrisation that masks."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Scaled(nn.Module):
    """A parametrisation that bends and doubles."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.tanh()
