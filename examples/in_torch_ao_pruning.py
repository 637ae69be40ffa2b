"""PX as a sparsifier of torch.ao.pruning, under one of its schedulers.

    python examples/in_torch_ao_pruning.py

Takes a second; prints the table of the masks.
"""

from __future__ import annotations

import torch
from torch.ao.pruning import CubicSL

import pxfast
from pxfast.integrations.torch_ao_pruning import PXSparsifier


def main() -> None:
    """Removes 90% of a network's weights in five steps."""
    torch.manual_seed(0)
    model = pxfast.models.resnet20(num_classes=10)

    sparsifier = PXSparsifier(torch.randn(16, 3, 32, 32), sparsity_level=0.9)
    sparsifier.prepare(model)
    scheduler = CubicSL(sparsifier, init_sl=0.0, init_t=0, delta_t=1, total_t=5)
    for _ in range(6):  # the first at level 0; train in between, if you like
        sparsifier.step()
        scheduler.step()
    sparsifier.squash_mask()

    masks = pxfast.Masks.from_model(model, zeros=True)
    print(masks.summary())
    assert masks.kept == round(0.1 * masks.total)


if __name__ == "__main__":
    main()
