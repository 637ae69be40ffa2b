"""The search for a global threshold by dtype and density: reads, and the share of the bandwidth.

Scores in the tensor sizes of ViT-B, in turn with one read of them all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from torch import Tensor

from bench import _scores
from bench._harness import paired, ratio, spread
from bench._result import Result
from pxfast import ops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    _scores.add_arguments(parser)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.02, 0.0005])


def measure(arguments: argparse.Namespace) -> Result:
    """Time the search for every dtype and density."""
    rows = [
        _measure(scores, density, arguments.repeats)
        for scores in _scores.by_dtype(arguments)
        for density in arguments.densities
    ]
    notes = ["% of read bandwidth is the time of that many reads in the time taken."]
    return _scores.result(arguments, rows, notes)


def count_reads(scores: Sequence[Tensor], keep: int) -> int:
    """Return how often the search reads the scores."""
    module = import_module("pxfast.ops.select_threshold")
    histogram, reads = module.score_histogram, []
    module.score_histogram = lambda *args: (reads.append(1), histogram(*args))[1]
    try:
        module.select_threshold(scores, keep)
    finally:
        module.score_histogram = histogram
    return len(reads)


def _measure(scores: list[Tensor], density: float, repeats: int) -> dict[str, object]:
    keep = round(density * sum(score.numel() for score in scores))
    reads, bytes_ = count_reads(scores, keep), sum(score.nbytes for score in scores)
    seconds = paired(
        {"search": lambda: ops.select_threshold(scores, keep), "read": _scores.reading(scores)},
        repeats=repeats,
        title=f"{scores[0].dtype}",
    )
    return {
        "dtype": str(scores[0].dtype).removeprefix("torch."),
        "density": density,
        "reads": reads,
        "ms": spread([1e3 * s for s in seconds["search"]]),
        "GB/s": 1e-9 * reads * bytes_ / spread(seconds["search"])["median"],
        "% of read bandwidth": ratio([100 * reads * s for s in seconds["read"]], seconds["search"]),
    }
