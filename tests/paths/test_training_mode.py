"""Models in training mode are scored as in evaluation: what is random there does nothing."""

from __future__ import annotations

import pytest
import torch
from libraries import library
from torch import nn

import pxfast

RATES = {"drop_rate": 0.5, "proj_drop_rate": 0.4, "attn_drop_rate": 0.3, "drop_path_rate": 0.5}


def timm_vit() -> nn.Module:
    sizes = {"img_size": 32, "embed_dim": 12, "num_heads": 2, "depth": 2, "num_classes": 3}
    create = library("timm").create_model
    return create("vit_tiny_patch16_224", pos_drop_rate=0.2, patch_drop_rate=0.5, **RATES, **sizes)


def torchvision_swin() -> nn.Module:
    return library("torchvision").models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4],
        dropout=0.3, attention_dropout=0.3, stochastic_depth_prob=0.6, num_classes=3,
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("build", [timm_vit, torchvision_swin])
def test_scores_are_those_of_evaluation(build, criterion):
    torch.manual_seed(0)
    model, x = build().train(), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    scores = pxfast.score(model, x, criterion=criterion)
    assert all(module.training for module in model.modules())
    assert scores == pxfast.score(model.eval(), x, criterion=criterion)
