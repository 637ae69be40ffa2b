"""Masks of pxfast in NNCF: its hooks keep them while it trains, counts and strips.

    python examples/in_nncf.py

Takes a few seconds; prints NNCF's statistic.
"""

from __future__ import annotations

import nncf
import torch

import pxfast
from pxfast.integrations.nncf import set_masks


def main() -> None:
    """Prunes to 10%, hands the masks to NNCF, trains for a few steps and strips."""
    torch.manual_seed(0)
    model = pxfast.models.resnet20(num_classes=10)
    images = torch.randn(16, 3, 32, 32)
    masks = pxfast.score(model, images).masks(density=0.1)
    set_masks(model, masks)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(nncf.pruning_statistic(model))

    in_place = nncf.StripFormat.IN_PLACE
    model = nncf.strip(model, example_input=images, strip_format=in_place)
    for name, mask in masks.items():  # plain weights again, with the zeros in them
        assert not model.get_parameter(name)[~mask].any()


if __name__ == "__main__":
    main()
