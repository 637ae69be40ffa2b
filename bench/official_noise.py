"""Whether the official code's scores mean anything: the same scores in float32 and float64.

A meaningful score hardly changes with the precision it is computed in (ratio 1, rank correlation
1). Rounding noise shrinks with the machine epsilon: the ratio is then near 1.9e-9. On networks
with BatchNorm and global average pooling it is the latter (docs/method.md, section 8).
"""

from __future__ import annotations

import argparse

from bench import _setting
from bench._result import Result
from pxfast.models import resnet20
from pxfast.reference import official


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--size", type=int, default=32, help="height and width of the digits")
    parser.add_argument("--per-class", type=int, default=10, help="images of each of 10 classes")


def measure(arguments: argparse.Namespace) -> Result:
    """Compare precisions on ResNet-20 with BatchNorm and, as a control, without."""
    _, images = _setting.setting("resnet20", arguments.size, arguments.per_class)
    rows = []
    for batchnorm in (True, False):
        model = resnet20(num_classes=10, in_channels=images.shape[1], batchnorm=batchnorm).eval()
        found = official.noise(model, images)
        ratios = [layer["ratio"] for layer in found["layers"].values()]
        rows.append(
            {
                "network": "ResNet-20" + ("" if batchnorm else " without BatchNorm"),
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
            "Per layer, the sum of its scores computed in float64 over the same in float32; the "
            "rank correlation (Spearman's) is between the two precisions' scores of a layer's "
            "weights, median over layers."
        ],
    )
