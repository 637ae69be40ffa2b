"""torchvision's convolutional networks against the literal reference in float64.

Narrow where torchvision lets them be: the operations are those of the full network, and channels
more of the same kind test nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import nets
import pytest
import torch
from libraries import library
from tolerances import ARCHITECTURE, close
from torch import nn

import pxfast
from pxfast.reference import px

NAMED = {
    "resnet18": {},
    "shufflenet_v2_x0_5": {},
    "mobilenet_v2": {"width_mult": 0.25},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
BOTTLENECKS = {  # the wide one has twice the inner width, ResNeXt has 32 groups
    "resnet50": ("resnet50", {"width_per_group": 8}),
    "wide_resnet50_2": ("resnet50", {"width_per_group": 16}),
    "resnext50_32x4d": ("resnet50", {"groups": 32, "width_per_group": 1}),
    "resnet152": ("resnet152", {"width_per_group": 4}),
}
CLASSES = 3


def vgg16(models: Any, batch_norm: bool) -> nn.Module:
    plan = [size if size == "M" else size // 8 for size in models.vgg.cfgs["D"]]
    features = models.vgg.make_layers(plan, batch_norm=batch_norm)
    model = models.VGG(features, num_classes=CLASSES, init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(64 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, CLASSES)
    )
    return model


def mobilenet_v3(models: Any) -> nn.Module:
    blocks, last = models.mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.25)
    return models.MobileNetV3(blocks, last, num_classes=CLASSES)


def efficientnet(models: Any) -> nn.Module:
    blocks, last = models.efficientnet._efficientnet_conf(
        "efficientnet_b0", width_mult=0.25, depth_mult=1.0
    )
    return models.EfficientNet(blocks, 0.2, last_channel=last, num_classes=CLASSES)


def convnext(models: Any) -> nn.Module:
    stage = models.convnext.CNBlockConfig
    plan = [stage(12, 24, 3), stage(24, 48, 3), stage(48, 96, 9), stage(96, None, 3)]
    return models.ConvNeXt(plan, num_classes=CLASSES)


def regnet(models: Any, squeeze: float | None) -> nn.Module:
    plan = models.regnet.BlockParams.from_init_params(
        depth=13, w_0=24, w_a=9, w_m=2.54, group_width=8, se_ratio=squeeze
    )
    return models.RegNet(plan, num_classes=CLASSES)


def fcn(models: Any) -> nn.Module:
    """With the auxiliary head: two entries in the output's dictionary."""
    backbone = models.resnet50(width_per_group=4, replace_stride_with_dilation=[False, True, True])
    layers = {"layer4": "out", "layer3": "aux"}
    features = models._utils.IntermediateLayerGetter(backbone, return_layers=layers)
    head = models.segmentation.fcn.FCNHead
    return models.segmentation.FCN(features, head(2048, CLASSES), head(1024, CLASSES))


def deeplabv3(models: Any) -> nn.Module:
    blocks = models.mobilenet_v2(width_mult=0.25).features
    features = models._utils.IntermediateLayerGetter(blocks, return_layers={"17": "out"})
    head = models.segmentation.deeplabv3.DeepLabHead(80, CLASSES, atrous_rates=(1, 2, 3))
    return models.segmentation.DeepLabV3(features, head, None)


def lraspp(models: Any) -> nn.Module:
    """A gate of one place for all."""
    blocks = models.mobilenet_v2(width_mult=0.25).features
    layers = {"6": "low", "17": "high"}
    features = models._utils.IntermediateLayerGetter(blocks, return_layers=layers)
    return models.segmentation.LRASPP(features, 8, 80, CLASSES, inter_channels=16)


BUILT: dict[str, Callable[[Any], nn.Module]] = {
    "vgg16": lambda models: vgg16(models, False),
    "vgg16_bn": lambda models: vgg16(models, True),
    "densenet121": lambda models: models.DenseNet(8, (6, 12, 24, 16), 16, num_classes=CLASSES),
    "mobilenet_v3_small": mobilenet_v3,
    "efficientnet_b0": efficientnet,
    "convnext_tiny": convnext,
    "regnet_x": lambda models: regnet(models, None),
    "regnet_y": lambda models: regnet(models, 0.25),
    "fcn_resnet50": fcn,
    "deeplabv3": deeplabv3,
    "lraspp": lraspp,
}
NETWORKS = [*NAMED, *BOTTLENECKS, *BUILT]
SIZES = {"inception_v3": 75}


def build(name: str) -> nn.Module:
    torchvision = library("torchvision")
    models = torchvision.models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in BUILT:
            model = BUILT[name](models)
        else:
            full, options = BOTTLENECKS.get(name) or (name, NAMED[name])
            model = getattr(models, full)(weights=None, num_classes=CLASSES, **options)
    return nets.seeded(lambda: model.double(), 0)  # norms and biases are not the identity


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_the_reference(name):
    torch.manual_seed(0)
    model = build(name)
    size = SIZES.get(name, 32)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # auxiliary heads are left out by name
        for criterion in ("px", "px-joint"):
            for masks in (None, nets.random_masks(model, 0.7)):
                scores = pxfast.score(model, x, criterion=criterion, masks=masks)
                expected = px.score(model, x, criterion=criterion, masks=masks)
                assert list(scores) == list(expected)
                for weight, score in scores.items():
                    close(score, expected[weight], ARCHITECTURE, f"{name} {criterion} {weight}")
