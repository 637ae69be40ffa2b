"""PX in code of the Synaptic-Flow family: one import line is new.

    python examples/in_synflow.py

The layer, the generator of masked parameters and the loop stand in for the repository's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pxfast.integrations.synflow import PX  # instead of: from Pruners.pruners import …


class Linear(nn.Linear):
    """A layer that masks its weight in its forward."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.register_buffer("weight_mask", torch.ones_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies with the mask each time."""
        return F.linear(x, self.weight_mask * self.weight, self.bias)


def main() -> None:
    """Keeps 10% of the weights in 20 rounds."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), Linear(64, 100), nn.ReLU(), Linear(100, 50), nn.ReLU(), Linear(50, 10)
    )
    loader = torch.utils.data.DataLoader([(torch.randn(1, 8, 8), 0) for _ in range(64)], 32)

    layers = [module for module in model if isinstance(module, Linear)]
    pruner = PX((layer.weight_mask, layer.weight) for layer in layers)
    for epoch in range(20):
        pruner.score(model, nn.CrossEntropyLoss(), loader, "cpu")
        pruner.mask(0.1 ** ((epoch + 1) / 20), "global")

    remaining, total = pruner.stats()
    print(f"{remaining:.0f} of {total} weights remain")
    assert remaining == round(0.1 * total)


if __name__ == "__main__":
    main()
