"""sparse_dual_conv2d against one dense convolution, over the layers of ResNet-50 and ResNet-20.

Value and path sum go through the weights that a mask keeps, in one pass; the dense convolution (of
torch, without a mask) carries the value alone, so that two of them are what a pass without the op
costs. 16 images of 224² for ResNet-50, 100 of 32² for ResNet-20. The dense convolution and the op
at each density are timed in turn in one process.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import conv2d

from bench._harness import paired, ratio, spread
from bench._result import Result
from pxfast import ops


class Layer(NamedTuple):
    """A convolution with padding kernel // 2."""

    inputs: int
    outputs: int
    pixels: int  # height and width of the input
    kernel: int
    stride: int = 1

    def __str__(self) -> str:
        stride = f" / {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}×{self.kernel} {self.inputs}→{self.outputs} @ {self.pixels}{stride}"


LAYERS = {
    "resnet50": [
        Layer(256, 64, 56, 1),
        Layer(64, 256, 56, 1),
        Layer(64, 64, 56, 3),
        Layer(128, 128, 56, 3, 2),
        Layer(128, 128, 28, 3),
        Layer(512, 1024, 28, 1, 2),
        Layer(256, 256, 14, 3),
        Layer(1024, 256, 14, 1),
        Layer(512, 512, 7, 3),
        Layer(2048, 512, 7, 1),
    ],
    "resnet20": [
        Layer(16, 16, 32, 3),
        Layer(16, 32, 32, 3, 2),
        Layer(32, 32, 16, 3),
        Layer(32, 64, 16, 1, 2),
        Layer(64, 64, 8, 3),
    ],
}
IMAGES = {"resnet50": 16, "resnet20": 100}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--models", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument(
        "--densities", type=float, nargs="+", default=[0.9, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01]
    )
    parser.add_argument("--images", type=int, help="in a batch (16 for resnet50, 100 for resnet20)")
    parser.add_argument("--squared", action="store_true", help="the joint network's path sums")
    parser.add_argument("--repeats", type=int, default=7, help="how often each is timed")


def measure(arguments: argparse.Namespace) -> Result:
    """Time every layer at every density."""
    rows = []
    for model in arguments.models:
        images = arguments.images or IMAGES[model]
        for layer in LAYERS[model]:
            times = _measure(layer, images, arguments)
            row = {"model": model, "layer": str(layer), "images": images, **times}
            rows.append(row)
    return Result(
        subject="joint" if arguments.squared else "h",
        settings={"dtype": "float32", "repeats": arguments.repeats},
        rows=rows,
        notes=[
            "The columns of densities: time of the op, value and path sum together, ÷ time of one "
            "dense convolution; medians and in brackets the quartiles. Without the op, 2 dense "
            "convolutions are needed.",
        ],
    )


def _measure(layer: Layer, images: int, arguments: argparse.Namespace) -> dict[str, object]:
    torch.manual_seed(0)
    value = torch.randn(images, layer.inputs, layer.pixels, layer.pixels)
    weight = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel)
    geometry = {"stride": layer.stride, "padding": layer.kernel // 2}
    sparse = partial(
        ops.sparse_dual_conv2d, value, value.abs(), weight, squared=arguments.squared, **geometry
    )
    works = {"dense": partial(conv2d, value, weight, **geometry)}
    for density in arguments.densities:
        works[f"{density:.0%}"] = partial(sparse, torch.rand_like(weight) < density)
    with torch.no_grad():
        seconds = paired(works, repeats=arguments.repeats, title=str(layer))
    dense = seconds.pop("dense")
    ratios = {density: ratio(times, dense) for density, times in seconds.items()}
    return {"dense ms": spread([1e3 * s for s in dense]), **ratios}
