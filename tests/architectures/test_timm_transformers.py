"""timm's vision transformers against the literal reference in float64.

Small, with every operation of the full network: two blocks (two of each stage), a few channels.
Tokens, positions, biases, norms and learned scales are random, so that a rule that starts a path
there, or forgets a scale, is caught.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from libraries import library
from tolerances import ARCHITECTURE, IN_FLOAT32
from torch import nn

from bench import architectures

CLASSES = 5
ROWS = {"embed_dim": 24, "num_heads": 3, "depth": 2}  # of a plain transformer
WINDOWS = {"embed_dim": 12, "num_heads": (2, 3), "depths": (2, 2), "window_size": 4}
STAGES = {"embed_dim": (32, 32), "depths": (1, 1), "block_type": ("M", "M"), "stem_width": 8}
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", 32, ROWS),
    "vit, pooled": ("vit_tiny_patch16_224", 32, ROWS | {"global_pool": "avg"}),
    "vit, qk-norm": ("vit_tiny_patch16_224", 32, ROWS | {"qk_norm": True}),
    "aimv2": ("aimv2_large_patch14_224", 28, ROWS),
    "dinov3": ("vit_small_patch16_dinov3", 32, ROWS),
    "vit, parallel": ("vit_base_patch16_xp_224", 32, ROWS),
    "vit, relative positions": ("vit_relpos_small_patch16_224", 32, ROWS),
    "vit, rotary": ("vit_small_patch16_rope_mixed_224", 32, ROWS),
    "deit, distilled": ("deit_tiny_distilled_patch16_224", 32, ROWS),
    "deit 3": ("deit3_small_patch16_224", 32, ROWS),
    "beit": ("beit_base_patch16_224", 32, ROWS),
    "beit 2": ("beitv2_base_patch16_224", 32, ROWS),
    "swin": ("swin_tiny_patch4_window7_224", 32, WINDOWS),
    "swin 2": ("swinv2_tiny_window8_256", 32, WINDOWS),
    "swin 2, cr": ("swinv2_cr_tiny_224", 32, WINDOWS | {"window_size": (4, 4)}),
    "eva 02, fused": ("eva02_tiny_patch14_224", 28, ROWS),
    "eva 02, split": ("eva02_base_patch14_224", 28, ROWS),
    "dinov2, registers": ("vit_small_patch14_reg4_dinov2", 28, ROWS),
    "dinov2, SwiGLU": ("vit_giant_patch14_reg4_dinov2", 28, ROWS),
    "siglip": ("vit_base_patch16_siglip_224", 32, ROWS),
    "maxvit": ("maxvit_tiny_tf_224", 32, STAGES),
    "coatnet": ("coatnet_nano_rw_224", 32, STAGES | {"block_type": ("C", "T")}),
    "convnext 2": ("convnextv2_atto", 32, {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}),
    "hybrid stem": ("vit_tiny_r_s16_p8_224", 32, ROWS),
    "cait, talking heads": ("cait_xxs24_224", 32, ROWS),
    "xcit, over channels": ("xcit_nano_12_p16_224", 32, ROWS),
}
# models that take no sizes, by their class
MODULES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "metaformer, squared ReLU": (
        "metaformer", "MetaFormer", {"depths": (1, 1), "dims": (8, 16), "use_mlp_head": False},
    ),
    "focalnet, focal modulation": ("focalnet", "FocalNet", {"depths": (1, 1), "embed_dim": 8}),
}  # fmt: skip
SIZED = ("vit", "aimv2", "deit", "beit", "swin", "eva", "cait", "xcit", "maxvit", "coatnet")


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network and two images for it."""
    model, size, options = NETWORKS[name]
    if model.startswith(SIZED):
        options = options | {"img_size": size}
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)
    return architectures.build(model, **options), images


@pytest.mark.filterwarnings("ignore:the output never uses", "ignore:no path sum opens")
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_the_reference(name):
    library("timm")
    assert architectures.difference(*build(name), density=0.5) <= ARCHITECTURE


@pytest.mark.parametrize("name", MODULES)
def test_scores_of_a_class_equal_the_reference(name):
    module, kind, options = MODULES[name]
    library("timm")
    torch.manual_seed(0)
    model = getattr(library(f"timm.models.{module}"), kind)(num_classes=CLASSES, **options)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model = architectures.randomised(model).double().eval()
    assert architectures.difference(model, images, density=0.5) <= ARCHITECTURE


@pytest.mark.filterwarnings("ignore:the output never uses", "ignore:no path sum opens")
def test_attention_without_softmax_equals_the_reference():
    """EfficientViT's linear attention, which casts to float32 whatever the model's dtype."""
    library("timm")
    torch.manual_seed(0)
    model = library("timm.models.efficientvit_mit").EfficientVit(
        num_classes=CLASSES, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), head_dim=8,
        head_widths=(16, 16),
    )  # fmt: skip
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = architectures.randomised(model).double().eval()
    assert architectures.difference(model, images, density=0.5) <= IN_FLOAT32
