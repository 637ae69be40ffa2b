"""The vision transformers of the transformers library against the literal reference in float64.

Built from small configurations, nothing downloaded; attention written out ("eager") and by torch's
function ("sdpa").
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from libraries import library
from tolerances import ARCHITECTURE
from torch import nn

from bench import architectures

ROWS = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
    "image_size": 32, "patch_size": 16,
}  # fmt: skip
WINDOWS = {
    "image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3],
    "window_size": 4,
}  # fmt: skip
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", ROWS),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", ROWS),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", ROWS | {"mlp_ratio": 2}),
    "dinov2, SwiGLU": (
        "Dinov2ForImageClassification", "Dinov2Config", ROWS | {"use_swiglu_ffn": True}
    ),
    "dinov2, registers": (
        "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig",
        ROWS | {"mlp_ratio": 2},
    ),
    "swin": ("SwinForImageClassification", "SwinConfig", WINDOWS),
    "swin v2": ("Swinv2ForImageClassification", "Swinv2Config", WINDOWS),
    "beit": (
        "BeitForImageClassification", "BeitConfig",
        ROWS | {"use_relative_position_bias": True, "out_indices": [0]},
    ),
    "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", ROWS | {"projection_dim": 8}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", ROWS),
}  # fmt: skip
WITHOUT_SDPA = ("swin v2",)


def build(name: str, attention: str) -> nn.Module:
    transformers = library("transformers")
    model, configuration, options = NETWORKS[name]
    configuration = getattr(transformers, configuration)(**options)
    torch.manual_seed(0)
    network = getattr(transformers, model)._from_config(
        configuration, attn_implementation=attention
    )
    return architectures.randomised(network).double().eval()


CASES = [(name, attention) for name in NETWORKS for attention in ("sdpa", "eager")
         if (name, attention) not in [(n, "sdpa") for n in WITHOUT_SDPA]]  # fmt: skip


@pytest.mark.filterwarnings("ignore:the output never uses", "ignore:no path sum opens")
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_scores_equal_the_reference(name, attention):
    model = build(name, attention)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert architectures.difference(model, x, density=0.5) <= ARCHITECTURE
