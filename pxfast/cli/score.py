"""``pxfast score``: one score per weight."""

from __future__ import annotations

import argparse
from pathlib import Path

from pxfast.cli.inputs import (
    batches_of,
    check_writable,
    model_of,
    provenance_line,
    scoring_options,
)
from pxfast.cli.options import add_data, add_model, add_scoring
from pxfast.scoring import score as find_scores
from pxfast.selection.scores import Scores

USAGE = "MODEL --data NAME [options]"
SUMMARY = "one score per weight"
TEXT = """\
Scores every prunable weight (of linear and convolution layers): the higher, the more it is worth
keeping. Writes the scores and prints the total of each layer. Scores of a layer that every path
crosses add up to 1.
"""
EXAMPLES = """\
examples:
  pxfast score pxfast.models:vgg16 --data random:3x32x32
  pxfast score mynets.py:wide --model-arg width=64 --weights wide.pth --data imagefolder:photos
  pxfast score torchvision:resnet18 --data random:3x224x224 --criterion px-joint
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    add_model(parser)
    add_data(parser)
    add_scoring(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=Path("scores.safetensors"),
        help="where the scores go",
    )
    parser.set_defaults(run=score)


def score(arguments: argparse.Namespace) -> None:
    """Writes the scores, prints the total of each layer."""
    check_writable("--output", arguments.output)
    model, batches = model_of(arguments), batches_of(arguments)
    scores = find_scores(model, batches, **scoring_options(arguments))
    print(_totals_table(scores))
    print(provenance_line(scores.provenance))
    scores.save(arguments.output)
    print(f"scores: {arguments.output}")


def _totals_table(scores: Scores) -> str:
    """The share of the squared-path sum that crosses each layer, as plain text."""
    totals = scores.totals()
    names = max([len(name) for name in totals] + [len("weight")])
    lines = [f"{'weight':{names}}  {'weights':>12}  {'total':>10}"]
    lines += [
        f"{name:{names}}  {scores[name].numel():12,}  {total:>10.6g}"
        for name, total in totals.items()
    ]
    return "\n".join(lines)
