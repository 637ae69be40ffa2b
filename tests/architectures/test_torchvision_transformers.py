"""torchvision's vision transformers against the literal reference in float64, small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from libraries import library
from tolerances import ARCHITECTURE
from torch import nn

from bench import architectures

CLASSES = 5
WINDOWS = {
    "patch_size": [4, 4], "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3],
    "window_size": [4, 4], "num_classes": CLASSES,
}  # fmt: skip


def vit(models: Any) -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24,
        num_classes=CLASSES,
    )  # fmt: skip


def swin_v2(models: Any) -> nn.Module:
    swin = models.swin_transformer
    return models.SwinTransformer(
        **WINDOWS, block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2
    )


def maxvit(models: Any) -> nn.Module:
    return models.MaxVit(
        input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[16, 16],
        block_layers=[1, 1], head_dim=8, stochastic_depth_prob=0.0, num_classes=CLASSES,
    )  # fmt: skip


NETWORKS: dict[str, Callable[[Any], nn.Module]] = {
    "vit": vit,
    "swin": lambda models: models.SwinTransformer(**WINDOWS),
    "swin_v2": swin_v2,
    "maxvit": maxvit,
}


@pytest.mark.filterwarnings("ignore:the output never uses", "ignore:no path sum opens")
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_the_reference(name):
    models = library("torchvision").models
    torch.manual_seed(0)
    model = architectures.randomised(NETWORKS[name](models)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert architectures.difference(model, x, density=0.5) <= ARCHITECTURE
