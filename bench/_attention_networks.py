"""timm's networks with attention, one or more of each of its modules, small.

Two blocks, or one or two of each stage, a few channels: with every operation of the full network.
A name stands for one of timm's models with other sizes, or, where those are fixed, for its class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench._libraries import load

CLASSES = 5
ROWS = {"embed_dim": 24, "num_heads": 3, "depth": 2}  # of a plain transformer
PYRAMID = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}

# model, or module.Class; size of the images; sizes of the network
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "byoanet, HaloNet": ("halonet_h1", 256, {}),
    "byoanet, bottleneck transformer": ("eca_botnext26ts_256", 256, {}),
    "byoanet, lambda": ("lambda_resnet26rpt_256", 256, {}),
    "coat": (
        "coat_tiny", 64, {"img_size": 64, "embed_dims": (16,) * 4, "serial_depths": (1,) * 4,
                          "parallel_depth": 1, "num_heads": 8}
    ),
    "coat lite": (
        "coat_lite_tiny", 64, {"img_size": 64, "embed_dims": (8, 16, 16, 24),
                               "serial_depths": (1,) * 4, "num_heads": 8}
    ),
    "convit": (
        "convit_tiny", 32, {"img_size": 32, "embed_dim": 6, "depth": 2, "local_up_to_layer": 1}
    ),
    "cpubone": ("cpubone_nano", 64, {"width_list": [8, 8, 16, 16, 24]}),
    "crossvit": (
        "crossvit_9_dagger_240", 240, {"embed_dim": [16, 32], "depth": [[1, 1, 0]] * 2}
    ),
    "csatv2": ("csatv2", 256, {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1),
                               "transformer_depths": (0, 0, 1, 1)}),
    "davit": (
        "davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 24),
                           "num_heads": (1, 2, 2, 3)}
    ),
    "deepseek": (
        "deepseek_vit.DeepseekVitClassifier", 84, ROWS | {"img_size": 84, "mlp_ratio": 2.0}
    ),
    "efficientformer": (
        "efficientformer_l1", 224, {"depths": (1, 1, 1, 2), "embed_dims": (8, 8, 16, 24)}
    ),
    "efficientformer 2": (
        "efficientformerv2_s0", 64,
        {"img_size": 64, "depths": (1, 1, 2, 2), "embed_dims": (8, 8, 16, 24), "num_vit": 1,
         "mlp_ratios": (2, 2, (2, 2), (2, 2))},
    ),
    "efficientvim": (
        "efficientvim_m1", 128, {"embed_dim": (8, 16, 24), "depths": (1, 1, 1),
                                 "state_dim": (9, 9, 4)}
    ),
    "efficientvit, mit": (
        "efficientvit_mit.EfficientVit", 64,
        {"widths": (8, 8, 16, 16), "depths": (1,) * 4, "head_dim": 8, "head_widths": (16, 16)},
    ),
    "efficientvit, msra": (
        "efficientvit_m0", 64,
        {"img_size": 64, "embed_dim": (16, 16, 24), "depth": (1, 1, 1), "num_heads": (2, 2, 3),
         "key_dim": (4, 4, 4)},
    ),
    "eva, rotary": ("eva02_tiny_patch14_224", 28, ROWS | {"img_size": 28}),
    "focalnet": ("focalnet.FocalNet", 32, {"depths": (1, 1), "embed_dim": 8}),
    "gcvit": (
        "gcvit.GlobalContextVit", 64,
        {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4),
         "window_size": (4, 4, 4, 2)},
    ),
    "gemma 4": (
        "gemma4_vit.Gemma4VitClassifier", 96,
        ROWS | {"img_size": 96, "head_dim": 8, "intermediate_size": 32,
                "position_embedding_size": 64},
    ),
    "hiera": (
        "hiera.Hiera", 64,
        {"img_size": (64, 64), "embed_dim": 8, "stages": (1, 1, 1, 1),
         "mask_unit_size": (8, 8)},
    ),
    "hieradet, SAM 2": (
        "hieradet_sam2.HieraDet", 64,
        {"embed_dim": 8, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
    ),
    "iformer": (
        "iformer.IFormer", 64,
        {"dims": (8, 8, 16, 24), "depths": (1, 1, 4, 4), "attn_groups": (0, 0, 1, 1)},
    ),
    "levit": (
        "levit.Levit", 64,
        {"img_size": 64, "embed_dim": (16, 24), "key_dim": 8, "depth": (1, 1), "num_heads": (2, 3)},
    ),
    "levit, convolutions": (
        "levit.Levit", 64,
        {"img_size": 64, "embed_dim": (16, 24), "key_dim": 8, "depth": (1, 1), "num_heads": (2, 3),
         "use_conv": True},
    ),
    "lowformer": ("lowformer_b0", 64, {"width_list": [8, 8, 16, 16, 24],
                                       "depth_list": [0, 1, 1, 1, 1]}),
    "maxvit": ("test_maxvit", 64, {"img_size": 64}),
    "coatnet": ("test_coatnet", 64, {"img_size": 64}),
    "poolformer": ("metaformer.MetaFormer", 32, {"depths": (1, 1), "dims": (8, 16),
                                                 "use_mlp_head": False}),
    "gmlp": (
        "gmlp_ti16_224", 64, {"img_size": 64}
    ),
    "gmixer": ("gmixer_12_224", 64, {"img_size": 64}),
    "resmlp": ("resmlp_12_224", 64, {"img_size": 64}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mobilevit 2": ("mobilevitv2_050", 64, {}),
    "mvit 2": ("mvitv2_tiny", 64, {"img_size": 64}),
    "naflex": ("naflexvit_base_patch16_gap", 64, ROWS),
    "nest": ("nest.Nest", 32, {"img_size": 32, "num_levels": 2, "embed_dims": (8, 16),
                               "num_heads": (2, 2), "depths": (1, 1)}),
    "nextvit": ("nextvit.NextViT", 64, {"in_chans": 3, "stem_chs": (8, 8, 8),
                                        "depths": (1, 1, 5, 1)}),
    "pit": (
        "pit.PoolingVisionTransformer", 64,
        {"img_size": 64, "base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (1, 2, 4),
         "distilled": True},
    ),
    "pvt 2": ("pvt_v2.PyramidVisionTransformerV2", 64, PYRAMID | {"depths": (1,) * 4}),
    "pvt 2, linear": (
        "pvt_v2.PyramidVisionTransformerV2", 64, PYRAMID | {"depths": (1,) * 4, "linear": True}
    ),
    "qwen 3": (
        "qwen3_vit.Qwen3VitClassifier", 64,
        ROWS | {"img_size": 64, "mlp_ratio": 2.0, "pos_embed_grid_size": 4},
    ),
    "sequencer": (
        "sequencer.Sequencer2d", 32,
        {"img_size": 32, "layers": (1, 1), "patch_sizes": (7, 2), "embed_dims": (8, 16),
         "hidden_sizes": (4, 4), "mlp_ratios": (2.0, 2.0)},
    ),
    "shvit": ("shvit_s1", 128, {"embed_dim": (16, 24, 32), "depth": (1, 1, 1),
                                "partial_dim": (8, 8, 8)}),
    "swiftformer": ("swiftformer_xs", 64, {"layers": [1] * 4, "embed_dims": [8, 8, 16, 24]}),
    "swin": (
        "swin_tiny_patch4_window7_224", 32,
        {"img_size": 32, "embed_dim": 12, "num_heads": (2, 3), "depths": (2, 2),
         "window_size": 4},
    ),
    "swin 2": (
        "swinv2_tiny_window8_256", 32,
        {"img_size": 32, "embed_dim": 12, "num_heads": (2, 3), "depths": (2, 2),
         "window_size": 4},
    ),
    "swin 2, cr": (
        "swinv2_cr_tiny_224", 32,
        {"img_size": 32, "embed_dim": 12, "num_heads": (2, 3), "depths": (2, 2),
         "window_size": (4, 4)},
    ),
    "tiny_vit": (
        "tiny_vit_5m_224", 64,
        {"embed_dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 3],
         "window_sizes": [7, 4, 4, 2]},
    ),
    "tnt": (
        "tnt.TNT", 32,
        {"img_size": 32, "embed_dim": 24, "inner_dim": 8, "depth": 2, "num_heads_inner": 2,
         "num_heads_outer": 3},
    ),
    "twins, pcpvt": ("twins_pcpvt_small", 64, PYRAMID | {"img_size": 64, "depths": [1] * 4}),
    "twins, svt": (
        "twins_svt_small", 64, PYRAMID | {"img_size": 64, "depths": [2] * 4}
    ),
    "visformer": (
        "visformer_tiny", 64, {"img_size": 64, "embed_dim": 24, "init_channels": 8,
                               "depth": (1, 1, 1), "group": 3}
    ),
    "vit": ("vit_tiny_patch16_224", 32, ROWS | {"img_size": 32}),
    "vit, relative positions": ("vit_relpos_small_patch16_224", 32, ROWS | {"img_size": 32}),
    "vit, hybrid": ("vit_tiny_r_s16_p8_224", 32, ROWS | {"img_size": 32}),
    "sam": (
        "samvit_base_patch16_224", 64,
        ROWS | {"img_size": 64, "global_attn_indexes": [1], "window_size": 3},
    ),
    "vitamin": ("vitamin_small_224", 64, {"img_size": 64, "depth": 2}),
    "volo": (
        "volo.VOLO", 64,
        {"img_size": 64, "layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 16),
         "num_heads": (1, 2, 2, 2), "stem_hidden_dim": 8},
    ),
    "xcit": ("xcit_nano_12_p16_224", 32, ROWS | {"img_size": 32}),
    "cait": ("cait_xxs24_224", 32, ROWS | {"img_size": 32}),
    "beit": ("beit_base_patch16_224", 32, ROWS | {"img_size": 32}),
    "deit, distilled": ("deit_tiny_distilled_patch16_224", 32, ROWS | {"img_size": 32}),
}  # fmt: skip


def randomised(model: nn.Module) -> nn.Module:
    """Draw norms, biases, learned scales, tokens and tables at random: as initialised, many are 0
    or 1; and the weights of linear layers so large that every branch counts."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() <= 1 or parameter.numel() == parameter.shape[0]:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() == 2 and name.endswith("weight"):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif not name.endswith("weight"):
                parameter.normal_()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a small network of timm, its norms and biases random, and one image for it."""
    model, size, options = NETWORKS[name]
    torch.manual_seed(0)
    module, _, kind = model.rpartition(".")
    if module:
        built = getattr(load(f"timm.models.{module}"), kind)(num_classes=CLASSES, **options)
    else:
        built = load("timm").create_model(model, num_classes=CLASSES, **options)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, size, size, dtype=torch.float64, generator=generator)
    return randomised(built).double().eval(), images
