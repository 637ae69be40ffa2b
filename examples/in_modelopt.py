"""Masks of pxfast in NVIDIA ModelOpt: its modules keep them while it trains and exports.

    python examples/in_modelopt.py

Takes a few seconds; 2:4 masks, which ModelOpt would otherwise choose by magnitude.
"""

from __future__ import annotations

import modelopt.torch.sparsity as mts
import torch

import pxfast
from pxfast.integrations.modelopt import set_masks


def main() -> None:
    """Scores, sets 2:4 masks, trains for a few steps and exports."""
    torch.manual_seed(0)
    model = pxfast.models.resnet20(num_classes=10)
    images = torch.randn(16, 3, 32, 32)

    scores = pxfast.score(model, images, exclude=["conv1.weight"])  # 3 channels: no groups of 4
    masks = scores.masks(density=0.5, pattern="2:4")
    set_masks(model, masks)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    model = mts.export(model)  # plain layers again, with the zeros in them
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()
    print(masks.summary())


if __name__ == "__main__":
    main()
