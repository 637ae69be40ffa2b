"""PX scores in torch.nn.utils.prune: its functions prune, pxfast only says what matters.

    python examples/in_torch_utils_prune.py

Takes a second; prints the table of the masks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune

import pxfast
from pxfast.integrations.torch_utils_prune import PXUnstructured


def main() -> None:
    """Prunes 90% of the weights in two ways, and reads the masks back."""
    torch.manual_seed(0)
    model = pxfast.models.resnet20(num_classes=10)
    images = torch.randn(16, 3, 32, 32)

    scores = pxfast.score(model, images)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    prune.global_unstructured(
        [(layer, "weight") for layer in layers],
        PXUnstructured,  # or prune.L1Unstructured, where ties do not matter
        importance_scores=scores.as_importance_scores(model),
        amount=0.9,
    )

    masks = pxfast.Masks.from_model(model)
    print(masks.summary())
    assert masks == scores.masks(sparsity=0.9)

    for layer in layers:
        prune.remove(layer, "weight")  # the zeros are now part of the weights


if __name__ == "__main__":
    main()
