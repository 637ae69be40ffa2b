"""torch.nn.utils.prune's own functions with PX scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import pxfast
from pxfast.integrations.torch_utils_prune import PXUnstructured


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


IMAGES = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def parameters(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize("amount", [0.3, 0.75, 0.98, 100])
@pytest.mark.parametrize("method", [PXUnstructured, prune.L1Unstructured])
def test_global_unstructured_makes_the_masks_of_the_scores(method, amount):
    model = net()
    scores = pxfast.score(model, IMAGES)
    prune.global_unstructured(
        parameters(model), method, scores.as_importance_scores(model), amount=amount
    )
    sparsity = amount if isinstance(amount, float) else amount / scores.total
    assert pxfast.Masks.from_model(model) == scores.masks(sparsity=sparsity)
