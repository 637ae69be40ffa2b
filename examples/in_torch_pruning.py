"""PX as the importance in Torch-Pruning: it finds what belongs together, and cuts it out.

    python examples/in_torch_pruning.py

Takes seconds; prints parameters and operations before and after.
"""

from __future__ import annotations

import torch
import torch_pruning as tp

import pxfast
from pxfast.integrations.torch_pruning import PXImportance


def main() -> None:
    """Removes half of the channels of ResNet-20, all layers competing, in two steps."""
    torch.manual_seed(0)
    model = pxfast.models.resnet20(num_classes=10)
    images = torch.randn(16, 3, 32, 32)

    pruner = tp.pruner.BasePruner(
        model,
        images[:1],
        importance=PXImportance(images),
        global_pruning=True,
        pruning_ratio=0.5,
        max_pruning_ratio=0.9,  # of each layer, against layers that vanish
        iterative_steps=2,
        ignored_layers=[model.fc],
    )
    before = tp.utils.count_ops_and_params(model, images[:1])
    for _ in range(2):
        pruner.step()  # train in between, if you like
    after = tp.utils.count_ops_and_params(model, images[:1])

    print(f"operations {before[0] / 1e6:.1f} to {after[0] / 1e6:.1f} million")
    print(f"parameters {before[1] / 1e3:.0f} to {after[1] / 1e3:.0f} thousand")
    assert model(images).shape == (16, 10)


if __name__ == "__main__":
    main()
