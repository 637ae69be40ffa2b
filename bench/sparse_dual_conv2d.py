"""sparse_dual_conv2d against one dense convolution, over the layers of ResNet-50 and ResNet-20.

Value and path sum go through the weights that a mask keeps, in one pass; the dense convolution (of
torch, without a mask) carries the value alone, so that two of them are what a pass without the op
costs. 16 images of 224² for ResNet-50, 100 of 32² for ResNet-20. The dense convolution and the op
at each density are timed in turn in one process.

With --end it is what follows that is measured: a BatchNorm, a sum with another branch and a ReLU
with its gate, at the end of the op against each by itself behind it.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d

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
    parser.add_argument(
        "--end", action="store_true", help="what a BatchNorm, a sum and a ReLU cost apart"
    )
    parser.add_argument("--repeats", type=int, default=7, help="how often each is timed")


def measure(arguments: argparse.Namespace) -> Result:
    """Time every layer at every density."""
    rows = []
    for model in arguments.models:
        images = arguments.images or IMAGES[model]
        for layer in LAYERS[model]:
            times = (_measure_ends if arguments.end else _measure)(layer, images, arguments)
            row = {"model": model, "layer": str(layer), "images": images, **times}
            rows.append(row)
    return Result(
        subject=("joint" if arguments.squared else "h") + ("-end" if arguments.end else ""),
        settings={"dtype": "float32", "repeats": arguments.repeats},
        rows=rows,
        notes=[
            "The columns of densities: time of the op, value and path sum together, ÷ time of one "
            "dense convolution; medians and in brackets the quartiles. Without the op, 2 dense "
            "convolutions are needed."
            if not arguments.end
            else "The columns of densities: time of the op, then BatchNorm, two sums and ops.gate "
            "by themselves ÷ time of the op with all of that at its end; medians and in brackets "
            "the quartiles.",
        ],
    )


def _arguments(layer: Layer, images: int) -> tuple[Tensor, Tensor, dict[str, int]]:
    torch.manual_seed(0)
    value = torch.randn(images, layer.inputs, layer.pixels, layer.pixels)
    weight = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel)
    return value, weight, {"stride": layer.stride, "padding": layer.kernel // 2}


def _measure_ends(layer: Layer, images: int, arguments: argparse.Namespace) -> dict[str, object]:
    value, weight, geometry = _arguments(layer, images)
    sparse = partial(
        ops.sparse_dual_conv2d, value, value.abs(), weight, squared=arguments.squared, **geometry
    )
    mean, variance, scale, bias = torch.rand(4, layer.outputs)
    factor = scale * (variance + 1e-5).rsqrt()
    residual = conv2d(value, weight, **geometry), conv2d(value.abs(), weight.abs(), **geometry)

    def apart(mask: Tensor) -> None:
        y, path = sparse(mask)
        y = batch_norm(y, mean, variance, scale, bias) + residual[0]
        ops.gate(y, path + residual[1], "relu", inplace=True)

    def at_the_end(mask: Tensor) -> None:
        sparse(mask, bias - mean * factor, scale=factor, residual=residual, relu=True)

    ratios = {}
    for density in arguments.densities:
        mask = torch.rand_like(weight) < density
        works = {"apart": partial(apart, mask), "end": partial(at_the_end, mask)}
        with torch.no_grad():
            seconds = paired(works, repeats=arguments.repeats, title=f"{layer} {density:.0%}")
        ratios[f"{density:.0%}"] = ratio(seconds["apart"], seconds["end"])
    return ratios


def _measure(layer: Layer, images: int, arguments: argparse.Namespace) -> dict[str, object]:
    value, weight, geometry = _arguments(layer, images)
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
