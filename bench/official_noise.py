"""Whether the official code's scores mean anything: the same scores in float32 and float64.

A meaningful score hardly changes with the precision it is computed in (ratio 1, rank correlation
1). Rounding noise shrinks with the machine epsilon: the ratio is then near 1.9e-9. On networks
with BatchNorm and global average pooling it is the latter (docs/method.md, section 8).
"""

from __future__ import annotations

import argparse

from torch import nn

from bench import _setting
from bench._result import Result
from pxfast.reference import official


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--size", type=int, default=32, help="height and width of the digits")
    parser.add_argument("--per-class", type=int, default=10, help="images of each of 10 classes")


def measure(arguments: argparse.Namespace) -> Result:
    """Compare precisions on ResNet-20 and, as a control, on a network without BatchNorm."""
    resnet20, images = _setting.setting("resnet20", arguments.size, arguments.per_class)
    networks = {"ResNet-20": resnet20, "four layers without BatchNorm": control()}
    rows = []
    for name, network in networks.items():
        found = official.noise(network, images)
        ratios = [layer["ratio"] for layer in found["layers"].values()]
        rows.append(
            {
                "network": name,
                "float64 ÷ float32, median layer": found["ratio"],
                "lowest layer": min(ratios),
                "highest layer": max(ratios),
                "rank correlation": found["rank_correlation"],
                "ratio of epsilons": found["epsilon_ratio"],
            }
        )
    return Result(
        subject="resnet20",
        settings=_setting.settings(images),
        rows=rows,
        notes=[
            "Per layer, the sum of its scores computed in float64 over the same in float32. The "
            "rank correlation (Spearman's, median layer) is between the two precisions' scores of "
            "its weights; noise has one as well, because a score has the factor θ².",
            "The control is not ResNet-20 without BatchNorm: there h overflows float32.",
        ],
    )


def control() -> nn.Module:
    """Return a network with global average pooling and without BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
