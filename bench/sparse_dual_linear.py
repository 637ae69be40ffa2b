"""sparse_dual_linear against one dense product, over the layers of ViT-B.

Value and path sum go through the weights that a mask keeps, in one pass; the dense product (of
torch, without a mask) carries the value alone. Without the op the engine masks the weights, takes
the product of the value, and looks the path sum up through the bits of the mask: the column
"without". 8 images and one image of 197 tokens. All are timed in turn in one process.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench._harness import paired, ratio, spread
from bench._result import Result
from pxfast import ops

LAYERS = ((768, 3072), (3072, 768), (768, 768), (768, 2304))  # inputs, outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--images", type=int, nargs="+", default=[8, 1], help="in a batch")
    parser.add_argument("--tokens", type=int, default=197, help="of an image")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25, 0.1, 0.05, 0.02, 0.01])
    parser.add_argument("--squared", action="store_true", help="the joint network's path sums")
    parser.add_argument("--repeats", type=int, default=7, help="how often each is timed")


def measure(arguments: argparse.Namespace) -> Result:
    """Time every layer at every density."""
    rows = []
    for images in arguments.images:
        for inputs, outputs in LAYERS:
            times = _measure((images, arguments.tokens, inputs), outputs, arguments)
            rows.append({"layer": f"{inputs}→{outputs}", "images": images, **times})
    threads = torch.get_num_threads()
    return Result(
        subject="joint" if arguments.squared else "h",
        settings={"dtype": "float32", "repeats": arguments.repeats, "threads": threads},
        rows=rows,
        notes=[
            "The columns of densities: time of the op, value and path sum together, ÷ time of one "
            "dense product; medians and in brackets the quartiles. Without the op, at any density: "
            "masked weights, their product, and the path sum through the bits of the mask (joint: "
            "through squared weights).",
        ],
    )


def _measure(
    shape: tuple[int, ...], outputs: int, arguments: argparse.Namespace
) -> dict[str, object]:
    torch.manual_seed(0)
    value, weight = torch.randn(shape), torch.randn(outputs, shape[-1])
    path, squared = value.abs(), arguments.squared
    masks = {density: torch.rand_like(weight) < density for density in arguments.densities}
    works = {
        "dense": partial(linear, value, weight),
        "without": partial(_without, value, path, weight, next(iter(masks.values())), squared),
    }
    for density, mask in masks.items():
        works[f"{density:.0%}"] = partial(
            ops.sparse_dual_linear, value, path, weight, mask, squared=squared
        )
    with torch.no_grad():
        seconds = paired(works, repeats=arguments.repeats, title=f"{list(shape)} → {outputs}")
    dense = seconds.pop("dense")
    ratios = {name: ratio(times, dense) for name, times in seconds.items()}
    return {"dense ms": spread([1e3 * s for s in dense]), **ratios}


def _without(
    value: Tensor, path: Tensor, weight: Tensor, mask: Tensor, squared: bool
) -> tuple[Tensor, Tensor]:
    y = linear(value, weight.where(mask, 0))
    if squared:
        return y, ops.squared_linear(path, weight, mask)
    return y, ops.masked_ones_linear(path, ops.pack_ones(mask))
