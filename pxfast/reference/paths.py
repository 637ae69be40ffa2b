"""Every path of a tiny network, one by one: the values v_p, the activations a_p, their sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sum(nn.ModuleList):
    """Branches that read the same input and are added: a residual block."""

    def __init__(self, *branches: nn.Module) -> None:
        """Takes the branches in order."""
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches' outputs."""
        outputs = [branch(x) for branch in self]
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total


class Concat(nn.ModuleList):
    """Branches that read the same input and are concatenated along dimension 1."""

    def __init__(self, *branches: nn.Module) -> None:
        """Takes the branches in order."""
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' outputs side by side."""
        return torch.cat([branch(x) for branch in self], dim=1)
