"""torchvision's convolutional networks, as they come, against the literal reference in float64."""

from __future__ import annotations

import warnings

import nets
import pytest
import torch
from libraries import library
from tolerances import ARCHITECTURE, close
from torch import nn

import pxfast
from pxfast.reference import px, px_rules

SIZES = {"inception_v3": 75, "googlenet": 48, "resnet152": 32, "vgg16": 32, "vgg16_bn": 32}
CLASSIFIERS = [
    "resnet18", "resnet50", "resnet152", "resnext50_32x4d", "wide_resnet50_2", "vgg16", "vgg16_bn",
    "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s",
    "convnext_tiny", "regnet_x_400mf", "regnet_y_400mf", "inception_v3", "googlenet",
    "shufflenet_v2_x0_5", "mnasnet0_5", "squeezenet1_1", "alexnet",
]  # fmt: skip
SEGMENTATION = ["fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"]


def build(name: str) -> nn.Module:
    torchvision = library("torchvision")
    px_rules.RULES[torchvision.ops.stochastic_depth] = px_rules.identity
    models = torchvision.models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in SEGMENTATION:
            model = getattr(models.segmentation, name)(
                weights=None, weights_backbone=None, num_classes=2
            )
        else:
            model = getattr(models, name)(weights=None, num_classes=3)
    if hasattr(model, "classifier") and name.startswith(("vgg", "alexnet")):
        narrow_classifier(model.classifier)
    return nets.seeded(lambda: model.double(), 0)  # norms and biases are not the identity


def narrow_classifier(classifier: nn.Sequential) -> None:
    """4096 hidden units are 100 million weights, which test nothing that 32 do not."""
    layers = [(i, layer) for i, layer in enumerate(classifier) if isinstance(layer, nn.Linear)]
    for index, layer in layers:
        inputs = layer.in_features if layer is layers[0][1] else 32
        outputs = layer.out_features if layer is layers[-1][1] else 32
        classifier[index] = nn.Linear(inputs, outputs)


@pytest.mark.parametrize("name", CLASSIFIERS + SEGMENTATION)
def test_scores_equal_the_reference(name):
    torch.manual_seed(0)
    model = build(name)
    size = SIZES.get(name, 64 if name in ("alexnet", *SEGMENTATION) else 40)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    masks = nets.random_masks(model, 0.02 if name == "resnet152" else 0.7)  # h in float64's range
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # auxiliary heads are left out by name
        for criterion, options in (("px", {"masks": masks}), ("px-joint", {})):
            scores = pxfast.score(model, x[:1], criterion=criterion, **options)
            expected = px.score(model, x[:1], criterion=criterion, **options)
            assert scores
            for weight, score in scores.items():
                close(score, expected[weight], ARCHITECTURE, f"{name} {criterion} {weight}")
