"""dual_max_pool2d against torch's max-pooling with indices and a gather, and a copy.

The stem of a ResNet: value and path sum in float32, 3×3 windows at stride 2. The op, torch's way to
the same and a copy of the value are timed in turn in one process.
"""

from __future__ import annotations

import argparse

import torch

from bench._harness import paired, ratio, spread
from bench._result import Result
from pxfast import ops
from pxfast.reference import dual_max_pool2d as reference

WINDOW = ([3, 3], [2, 2], [1, 1])  # kernel, stride, padding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--shape", type=int, nargs=4, default=[8, 64, 112, 112], help="N C H W")
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed")


def measure(arguments: argparse.Namespace) -> Result:
    """Time the op and what it stands for."""
    value, path = torch.randn(arguments.shape).relu(), torch.rand(arguments.shape)
    works = {
        "pxfast": lambda: ops.dual_max_pool2d(value, path, *WINDOW),
        "torch": lambda: reference.dual_max_pool2d(value, path, *WINDOW),
        "copy": lambda: torch.empty_like(value).copy_(value),
    }
    seconds = paired(works, repeats=arguments.repeats, title="3×3 / 2")
    moved = 2 * (value.nbytes + works["pxfast"]()[0].nbytes)
    share = [100 * moved / (2 * value.nbytes) * s for s in seconds["copy"]]
    return Result(
        subject="x".join(map(str, arguments.shape)),
        settings={"dtype": "float32", "window": "3×3 / 2", "repeats": arguments.repeats},
        rows=[{
            "pxfast ms": spread([1e3 * s for s in seconds["pxfast"]]),
            "torch ms": spread([1e3 * s for s in seconds["torch"]]),
            "× torch": ratio(seconds["torch"], seconds["pxfast"]),
            "GB/s": 1e-9 * moved / spread(seconds["pxfast"])["median"],
            "% of copy bandwidth": ratio(share, seconds["pxfast"]),
        }],
        notes=[
            "× torch is torch's time in ours, medians and in brackets the quartiles. GB/s counts "
            "value and path read, y and path_out written; a copy reads and writes."
        ],
    )  # fmt: skip
