"""squared_conv2d_backward on the layers of a ResNet-50 whose maps are small, against the formula.

Backward and saliency of one convolution at batch 1 in float32, in turn with plain torch: the
weight squared, convolution_backward, and the product added to the saliency. Weights and saliencies
come from a ring that fills the last-level cache four times. A row says whether scoring takes the
way through the columns of the input there (`squared_conv2d_columns_pay`); elsewhere it is plain
torch itself. The share of torch's time that squaring and adding take is what a kernel of our own
could spare.
"""

from __future__ import annotations

import argparse

import torch

from bench._harness import paired, ratio, spread
from bench._result import Result
from bench.squared_linear import ring_size
from pxfast import ops
from pxfast.reference import squared_conv2d as reference

# C, H = W, O, kernel, stride of the layers of a ResNet-50 at 224².
LAYERS = (
    (64, 56, 64, 3, 1),
    (256, 56, 64, 1, 1),
    (128, 28, 128, 3, 1),
    (256, 14, 256, 3, 1),
    (1024, 14, 256, 1, 1),
    (512, 14, 512, 3, 2),
    (1024, 14, 2048, 1, 2),
    (512, 7, 512, 3, 1),
    (512, 7, 2048, 1, 1),
    (2048, 7, 512, 1, 1),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed")
    parser.add_argument("--layers", type=int, default=len(LAYERS), help="the first so many")


def measure(arguments: argparse.Namespace) -> Result:
    """Time every layer."""
    return Result(
        subject="resnet50-224",
        settings={"dtype": "float32", "batch": 1, "repeats": arguments.repeats},
        rows=[_measure(layer, arguments.repeats) for layer in LAYERS[: arguments.layers]],
        notes=[
            "× torch is plain torch's time in ours, medians and in brackets the quartiles; 1 where "
            "they are the same code. The last column is the least time of squaring and adding in "
            "the least time of all that torch does.",
        ],
    )


def _measure(layer: tuple[int, ...], repeats: int) -> dict[str, object]:
    C, H, O, kernel, stride = layer
    shape, padding = (O, C, kernel, kernel), kernel // 2
    count = min(16, ring_size(4 * torch.Size(shape).numel()))
    ring = [(torch.randn(shape), torch.zeros(shape)) for _ in range(count)]
    x = torch.rand(1, C, H, H)
    dy = torch.rand_like(torch.conv2d(x, ring[0][0], None, stride, padding))
    settings = ([stride] * 2, [padding] * 2, [1, 1], 1)
    turn = iter(range(1 << 30))
    pays = ops.squared_conv2d_columns_pay(dy, x, ring[0][0], 1)

    def ours() -> None:
        weight, saliency = ring[next(turn) % count]
        if pays:
            ops.squared_conv2d_backward_by_columns(dy, x, weight, None, saliency, *settings[:3])
        else:
            reference.squared_conv2d_backward(dy, x, weight, None, saliency, *settings)

    def formula() -> None:
        weight, saliency = ring[next(turn) % count]
        reference.squared_conv2d_backward(dy, x, weight, None, saliency, *settings)

    def squares() -> None:
        weight, saliency = ring[next(turn) % count]
        saliency.addcmul_(weight.square(), weight)

    candidates = {"ours": ours, "formula": formula, "squares": squares}
    seconds = paired(candidates, repeats=repeats, title=str(layer))
    return {
        "layer": f"{C}×{H}×{H} → {O}, {kernel}×{kernel}, stride {stride}",
        "columns": "yes" if pays else "no",
        "pxfast ms": spread([1e3 * s for s in seconds["ours"]]),
        "torch ms": spread([1e3 * s for s in seconds["formula"]]),
        "× torch": ratio(seconds["formula"], seconds["ours"]),
        "% squares and sums": 100 * min(seconds["squares"]) / min(seconds["formula"]),
    }
