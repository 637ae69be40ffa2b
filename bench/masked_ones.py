"""masked_ones against torch's own product with a mask, over linear layers and convolutions.

Path sums of the data pass through a mask in float32. Linear layers are those of a ViT-B, at 1 to
1576 rows (8 images); convolutions those of ResNet-50 (16 images of 224²) and some with groups.
Timed in turn in one process: the op, from bits that are kept and with packing the mask first, and
torch, which expands the mask from bool to float32 first (for few rows, as the engine does where
the op does not pay, 4 MiB of it at a time). The op's time depends on no density; torch's neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from bench._harness import paired, ratio, spread
from bench._result import Result
from pxfast import ops
from pxfast.paths.rules.linear import MANY_TOKENS, MASKED_BYTES
from pxfast.paths.select import ones


class Layer(NamedTuple):
    """A convolution with padding kernel // 2."""

    inputs: int
    outputs: int
    pixels: int  # height and width of the input
    kernel: int
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        stride = f" / {self.stride}" if self.stride > 1 else ""
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        shape = f"{self.kernel}×{self.kernel} {self.inputs}→{self.outputs}"
        return f"{shape} @ {self.pixels}{stride}{groups}"


LINEAR = ((3072, 768), (768, 3072))
CONVOLUTIONS = (
    Layer(3, 64, 224, 7, 2),
    Layer(64, 256, 56, 1),
    Layer(256, 64, 56, 1),
    Layer(64, 64, 56, 3),
    Layer(128, 128, 56, 3, 2),
    Layer(512, 1024, 28, 1, 2),
    Layer(256, 256, 14, 3),
    Layer(512, 512, 7, 3),
    Layer(2048, 512, 7, 1),
    Layer(128, 128, 56, 3, 1, 32),
    Layer(1024, 1024, 14, 3, 1, 32),
    Layer(96, 96, 56, 3, 1, 96),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 64, 197, 1576], help="T")
    parser.add_argument("--images", type=int, default=16, help="in a batch of convolutions")
    parser.add_argument("--density", type=float, default=0.5, help="of the masks")
    parser.add_argument("--repeats", type=int, default=7, help="how often each is timed")


def measure(arguments: argparse.Namespace) -> Result:
    """Time every layer."""
    torch.manual_seed(0)
    rows = [_linear(T, *sizes, arguments) for sizes in LINEAR for T in arguments.rows] + [
        _convolution(layer, arguments) for layer in CONVOLUTIONS if arguments.images
    ]
    return Result(
        subject="h",
        settings={
            "dtype": "float32",
            "density": arguments.density,
            "images": arguments.images,
            "repeats": arguments.repeats,
        },
        rows=rows,
        notes=[
            "× torch is torch's time, expanding the mask included, in the op's, packing included; "
            "medians and in brackets the quartiles. Positions: rows, or pixels of the output of "
            "all images. Gterm/s counts a weight at a position, kept or not.",
            "chosen: what the engine takes by ops.masked_ones_pays.",
        ],
    )  # fmt: skip


def _linear(T: int, O: int, K: int, arguments: argparse.Namespace) -> dict[str, object]:
    mask, x = torch.rand(O, K) < arguments.density, torch.rand(T, K)
    bits = ops.pack_ones(mask)
    step = O if T >= MANY_TOKENS else max(1, MASKED_BYTES // (4 * K))

    def torchs() -> Tensor:
        return torch.cat([linear(x, ones(part, x.dtype)) for part in mask.split(step)], -1)

    pays = ops.masked_ones_pays(x, O)
    op = partial(ops.masked_ones_linear, x)
    return _row(f"linear {O}×{K}", T, pays, mask, _paired(op, bits, mask, torchs, arguments))


def _convolution(layer: Layer, arguments: argparse.Namespace) -> dict[str, object]:
    x = torch.rand(arguments.images, layer.inputs, layer.pixels, layer.pixels)
    shape = layer.outputs, layer.inputs // layer.groups, layer.kernel, layer.kernel
    mask = torch.rand(shape) < arguments.density
    bits = ops.pack_ones(mask)
    geometry = {
        "stride": layer.stride, "padding": layer.kernel // 2, "groups": layer.groups,
    }  # fmt: skip

    def torchs() -> Tensor:
        return conv2d(x, ones(mask, x.dtype), **geometry)

    def op(bits: Tensor) -> Tensor:
        return ops.masked_ones_conv2d(x, bits, layer.kernel, **geometry)

    pays = ops.masked_ones_pays(x, layer.outputs // layer.groups)
    positions = torchs()[:, 0].numel()
    return _row(str(layer), positions, pays, mask, _paired(op, bits, mask, torchs, arguments))


def _paired(
    op: Callable[[Tensor], Tensor],
    bits: Tensor,
    mask: Tensor,
    torchs: Callable[[], Tensor],
    arguments: argparse.Namespace,
) -> dict[str, list[float]]:
    works = {
        "bits": lambda: op(bits),
        "packed": lambda: op(ops.pack_ones(mask)),
        "torch": torchs,
    }
    return paired(works, repeats=arguments.repeats, title=str(list(mask.shape)))


def _row(
    layer: str, positions: int, pays: bool, mask: Tensor, seconds: Mapping[str, list[float]]
) -> dict[str, object]:
    return {
        "layer": layer,
        "positions": positions,
        "op ms": spread([1e3 * s for s in seconds["bits"]]),
        "with packing ms": spread([1e3 * s for s in seconds["packed"]]),
        "torch ms": spread([1e3 * s for s in seconds["torch"]]),
        "× torch": ratio(seconds["torch"], seconds["packed"]),
        "Gterm/s": 1e-9 * positions * mask.numel() / spread(seconds["bits"])["median"],
        "chosen": "op" if pays else "torch",
    }
