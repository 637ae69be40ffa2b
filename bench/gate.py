"""gate against the same in plain torch, and the share of the bandwidth it reaches.

Value and gated path of one activation in float32, behind an unpruned convolution (the path sums of
all channels alike) or a depthwise one (path sums of their own), and the former summed over channels
for an unpruned convolution that follows. A call's arrays come from a ring
that fills the last-level cache four times over, so that every call reads memory. pxfast, plain
torch and a copy of z are timed in turn in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from bench._harness import paired, ratio, spread
from bench._result import Result
from bench.squared_linear import ring_size
from pxfast import ops
from pxfast.reference.gate import GATES, VALUES

PARAMETERS = {"hardtanh": (0.0, 6.0), "leaky_relu": (0.01, 0.0), "elu": (1.0, 0.0)}
Maps = tuple[Tensor, Tensor, Tensor]  # z, path and a value to copy to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--shape", type=int, nargs=4, default=[4, 96, 56, 56], help="N C H W")
    parser.add_argument("--kinds", nargs="+", default=list(GATES), help="activations")
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed")
    parser.add_argument("--maps", type=int, help="in the ring (as many as fill the cache 4 times)")


def measure(arguments: argparse.Namespace) -> Result:
    """Time every activation, on path sums that are narrow and on wide ones."""
    shape = tuple(arguments.shape)
    size = torch.Size(shape).numel()
    count = arguments.maps or ring_size(4 * size)
    rows = []
    one = (shape[0], 1, *shape[2:])
    for form, narrow in (("wide", shape), ("narrow", one), ("narrow, summed", one)):
        ring = [(torch.randn(shape), torch.rand(narrow), torch.zeros(shape)) for _ in range(count)]
        rows += [_measure(ring, form, kind, arguments.repeats) for kind in arguments.kinds]
    return Result(
        subject="x".join(map(str, shape)),
        settings={"dtype": "float32", "maps in the ring": count, "repeats": arguments.repeats},
        rows=rows,
        notes=[
            "× torch is plain torch's time in ours, medians and in brackets the quartiles. GB/s "
            "counts z and path read, value and gated path (or its sum) written; a copy reads and "
            "writes.",
        ],
    )


def _measure(ring: list[Maps], form: str, kind: str, repeats: int) -> dict[str, object]:
    a, b = PARAMETERS.get(kind, (0.0, 0.0))
    summed = form.endswith("summed")

    def ours(z: Tensor, path: Tensor, value: Tensor) -> object:
        return ops.gate(z, path, kind, a, b, over_channels=summed)

    def plain(z: Tensor, path: Tensor, value: Tensor) -> object:
        gated = path * GATES[kind](z, a, b).square()
        return VALUES[kind](z, a, b), gated.sum(1, keepdim=True) if summed else gated

    def copy(z: Tensor, path: Tensor, value: Tensor) -> object:
        return torch.empty_like(z).copy_(z)

    def over_ring(step: Callable[[Tensor, Tensor, Tensor], object]) -> Callable[[], None]:
        def work() -> None:
            for maps in ring:
                step(*maps)

        return work

    candidates = {"pxfast": over_ring(ours), "torch": over_ring(plain), "copy": over_ring(copy)}
    seconds = {
        name: [s / len(ring) for s in times]
        for name, times in paired(candidates, repeats=repeats, title=f"{form} {kind}").items()
    }
    z, path, _ = ring[0]
    written = path.numel() if summed else z.numel()
    moved = (2 * z.numel() + written + path.numel()) * z.element_size()
    share = [100 * moved / (2 * z.nbytes) * s for s in seconds["copy"]]
    return {
        "path sums": form,
        "activation": kind,
        "pxfast ms": spread([1e3 * s for s in seconds["pxfast"]]),
        "torch ms": spread([1e3 * s for s in seconds["torch"]]),
        "× torch": ratio(seconds["torch"], seconds["pxfast"]),
        "GB/s": 1e-9 * moved / spread(seconds["pxfast"])["median"],
        "% of copy bandwidth": ratio(share, seconds["pxfast"]),
    }
