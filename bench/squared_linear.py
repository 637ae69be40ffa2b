"""squared_linear and its backward against eager torch, and the share of the bandwidth they reach.

Forward, backward and saliency of one linear layer in float32; the saliency is written, as the first
one of a weight is, not added to what it holds. A call's weight and saliency come
from a ring whose weights alone fill the last-level cache four times, so that every call reads
memory. pxfast, eager torch and a copy of as many bytes as one weight are timed in turn in one
process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench._harness import paired, ratio, spread
from bench._result import Result
from pxfast import ops

CACHE_FILLS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64, 197], help="T")
    parser.add_argument("--outputs", type=int, default=3072, help="O")
    parser.add_argument("--inputs", type=int, default=768, help="K")
    parser.add_argument("--repeats", type=int, default=15, help="how often each is timed")
    parser.add_argument(
        "--weights", type=int, help="in the ring (as many as fill the cache 4 times)"
    )


def measure(arguments: argparse.Namespace) -> Result:
    """Time forward, and backward with saliency, for every number of rows."""
    shape = arguments.outputs, arguments.inputs
    count = arguments.weights or ring_size(4 * shape[0] * shape[1])
    ring = [Layer(torch.randn(shape), torch.zeros(shape)) for _ in range(count)]
    rows = [row for T in arguments.rows for row in _measure(ring, T, arguments.repeats)]
    return Result(
        subject=f"{arguments.outputs}x{arguments.inputs}",
        settings={"dtype": "float32", "weights in the ring": count, "repeats": arguments.repeats},
        rows=rows,
        notes=[
            "× eager is eager torch's time in ours, medians and in brackets the quartiles. GB/s "
            "counts W read in each pass and saliency written; a copy reads and writes. Eager's "
            "forward keeps W² of every weight of the ring for the backward, in fresh memory; at "
            "few rows its pages take most of the time, and not the same from run to run.",
        ],
    )


class Layer:
    """One weight of the ring and its scores, with the passes that are compared."""

    def __init__(self, weight: Tensor, saliency: Tensor) -> None:
        self.weight, self.saliency = weight, saliency
        self.squared = weight

    def forward(self, x: Tensor, dy: Tensor) -> Tensor:
        """y by pxfast."""
        return ops.squared_linear(x, self.weight)

    def backward(self, x: Tensor, dy: Tensor) -> Tensor:
        """dx, and the saliency, by pxfast."""
        return ops.squared_linear_backward(dy, x, self.weight, None, self.saliency, add=False)

    def eager_forward(self, x: Tensor, dy: Tensor) -> Tensor:
        """y by torch, which keeps the squares for the backward."""
        self.squared = self.weight * self.weight
        return x @ self.squared.T

    def eager_backward(self, x: Tensor, dy: Tensor) -> Tensor:
        """dx, and the saliency, by torch."""
        dx = dy @ self.squared
        torch.mul(dy.T @ x, self.squared, out=self.saliency)
        self.squared = self.weight
        return dx


def ring_size(weight_bytes: int) -> int:
    """How many weights fill the last-level cache CACHE_FILLS times; 32 MiB where it is not told."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
    cache = max((int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=32 << 20)
    return -(-CACHE_FILLS * cache // weight_bytes)


def _measure(ring: list[Layer], T: int, repeats: int) -> list[dict[str, object]]:
    outputs, inputs = ring[0].weight.shape
    x, dy = torch.rand(T, inputs), torch.rand(T, outputs)

    def over_ring(step: Callable[[Layer, Tensor, Tensor], object]) -> Callable[[], None]:
        def work() -> None:
            for layer in ring:
                step(layer, x, dy)

        return work

    seconds = {
        name: [s / len(ring) for s in times]
        for name, times in paired(
            {
                "forward": over_ring(Layer.forward),
                "backward": over_ring(Layer.backward),
                "eager forward": over_ring(Layer.eager_forward),
                "eager backward": over_ring(Layer.eager_backward),
                "copy": over_ring(lambda layer, x, dy: layer.saliency.copy_(layer.weight)),
            },
            repeats=repeats,
            title=f"T = {T}",
        ).items()
    }
    for whole in ("", "eager "):
        passes = zip(seconds[f"{whole}forward"], seconds[f"{whole}backward"], strict=True)
        seconds[f"{whole}both"] = [sum(pair) for pair in passes]
    return [_row(T, name, seconds, ring[0].weight) for name in ("forward", "backward", "both")]


def _row(T: int, name: str, seconds: dict[str, list[float]], weight: Tensor) -> dict[str, object]:
    reads_and_writes = {"forward": 1, "backward": 2, "both": 3}[name]  # of W's size
    products = {"forward": 1, "backward": 2, "both": 3}[name]
    ours, copy = seconds[name], seconds["copy"]
    median = spread(ours)["median"]
    return {
        "T": T,
        "pass": name,
        "pxfast ms": spread([1e3 * s for s in ours]),
        "eager ms": spread([1e3 * s for s in seconds[f"eager {name}"]]),
        "× eager": ratio(seconds[f"eager {name}"], ours),
        "GB/s": 1e-9 * reads_and_writes * weight.nbytes / median,
        "% of copy bandwidth": ratio([100 * reads_and_writes / 2 * s for s in copy], ours),
        "GFLOP/s": 2e-9 * products * T * weight.numel() / median,
    }
