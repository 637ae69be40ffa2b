"""The masks of a global threshold, by dtype, with and without ties and earlier masks.

Scores in the tensor sizes of ViT-B, in turn with one read of them all and with a comparison by
torch, which writes as much.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torch import Tensor

from bench._harness import paired, ratio, spread
from bench._result import Result
from bench._scores import make_scores, reading, shapes
from bench.select_threshold import DTYPES
from pxfast import ops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--layers", type=int, help="how many of the model's weights (all)")
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed")


def measure(arguments: argparse.Namespace) -> Result:
    """Time the masks for every dtype."""
    sizes = shapes("vit-b")[: arguments.layers]
    rows = []
    for name in arguments.dtypes:
        scores = make_scores(sizes, DTYPES[name])
        half = [score < 1 for score in scores]
        rows += [
            _measure(scores, None, "", arguments.repeats),
            _measure(scores, half, "earlier masks", arguments.repeats),
            _measure([score * (score < 1) for score in scores], None, "ties", arguments.repeats),
        ]
    return Result(
        subject="vit-b",
        settings={"scores": sum(a * b for a, b in sizes), "repeats": arguments.repeats},
        rows=rows,
        notes=[
            "Half of the scores are kept. With ties, a part of those that are 0 is kept, which "
            "takes a second read. × torch is the time of scores > a number in ours.",
        ],
    )


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
            "read": reading(scores),
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
