"""The masks of a global threshold, by dtype, with and without ties and earlier masks.

Scores in the tensor sizes of ViT-B, in turn with one read of them all and with a comparison by
torch, which writes as much.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torch import Tensor

from bench import _scores
from bench._harness import paired, ratio, spread
from bench._result import Result
from pxfast import ops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    _scores.add_arguments(parser)


def measure(arguments: argparse.Namespace) -> Result:
    """Time the masks for every dtype."""
    rows = []
    for scores in _scores.by_dtype(arguments):
        half = [score < 1 for score in scores]
        rows += [
            _measure(scores, None, "", arguments.repeats),
            _measure(scores, half, "earlier masks", arguments.repeats),
            _measure([score * (score < 1) for score in scores], None, "ties", arguments.repeats),
        ]
    notes = [
        "Half of the scores are kept. With ties, a part of those that are 0 is kept, which "
        "takes a second read. × torch is the time of scores > a number in ours.",
    ]
    return _scores.result(arguments, rows, notes)


def _measure(
    scores: Sequence[Tensor], alive: Sequence[Tensor] | None, what: str, repeats: int
) -> dict[str, object]:
    count = sum(score.numel() for score in scores)
    keep = 3 * count // 4 if what == "ties" else count // 4 if alive else count // 2
    threshold = ops.select_threshold(scores, keep, alive)
    reads = 2 if 0 < threshold.ties < threshold.equal else 1
    moved = reads * sum(score.nbytes for score in scores) + count * (1 + reads * bool(alive))
    seconds = paired(
        {
            "masks": lambda: ops.write_masks(scores, threshold, alive),
            "torch": lambda: [score > 0.5 for score in scores],
            "read": _scores.reading(scores),
        },
        repeats=repeats,
        title=f"{scores[0].dtype} {what}",
    )
    return {
        "dtype": str(scores[0].dtype).removeprefix("torch."),
        "with": what,
        "reads": reads,
        "ms": spread([1e3 * s for s in seconds["masks"]]),
        "× torch": ratio(seconds["torch"], seconds["masks"]),
        "GB/s": 1e-9 * moved / spread(seconds["masks"])["median"],
        "% of read bandwidth": ratio([100 * reads * s for s in seconds["read"]], seconds["masks"]),
    }
