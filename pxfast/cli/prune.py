"""``pxfast prune``: masks of a density."""

from __future__ import annotations

import argparse
from pathlib import Path

from pxfast import report as reports
from pxfast.cli.inputs import (
    batches_of,
    check_plot,
    check_writable,
    model_of,
    provenance_line,
    scoring_options,
)
from pxfast.cli.options import add_amount, add_data, add_model, add_plot, add_scope, add_scoring
from pxfast.pruning import prune as find_masks
from pxfast.selection.patterns import Pattern, named

USAGE = "MODEL --data NAME (--density D | --sparsity S | --pattern N:M) [options]"
SUMMARY = "masks of a density"
TEXT = """\
Finds masks of a given density: in every round the network is scored with what is left of it, and
the lowest scores go. Removed weights never return. The network itself is not changed; masks are
applied in Python: pxfast.Masks.load("masks.safetensors").apply_(model).
"""
EXAMPLES = """\
The defaults are the paper's settings: 10 samples per class, 100 rounds, exponential schedule,
all layers compete.

examples:
  pxfast prune pxfast.models:resnet20 --model-arg in_channels=1 --data digits --density 0.02 \\
      --output masks.safetensors --plot densities.png
  pxfast prune timm:resnet50 --data imagefolder:imagenet --sparsity 0.98 --checkpoint run.ckpt
  pxfast prune mynets.py:wide --data cifar10:data --density 0.1 --exclude 'head.*' 'stem.*'
  pxfast prune mynets.py:wide --data cifar10:data --pattern 2:4
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    add_model(parser)
    add_data(parser)
    group = parser.add_argument_group("pruning")
    add_amount(group)
    group.add_argument("--rounds", type=int, metavar="R", default=100, help="rounds of pruning")
    group.add_argument(
        "--schedule",
        choices=("exponential", "linear"),
        default="exponential",
        help="densities of the rounds: D^(r/R), or equal steps",
    )
    add_scope(group)
    group.add_argument(
        "--pattern",
        type=_pattern,
        metavar="P",
        help="what is kept or removed as one: 2:4 or any N:M (which sets the density), channels, "
        "heads (default: single weights)",
    )
    group.add_argument(
        "--min-density",
        type=float,
        metavar="D",
        help="fraction that every layer keeps at least, against layer collapse",
    )
    group.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="written after every round; if it is there, the run goes on from it, to the same bits",
    )
    add_scoring(parser)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=Path("masks.safetensors"),
        help="where the masks go",
    )
    add_plot(results, "the densities")
    parser.set_defaults(run=prune, refuse=parser.error)


def _pattern(text: str) -> Pattern:
    try:
        return named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def prune(arguments: argparse.Namespace) -> None:
    """Writes the masks, prints the density of each layer."""
    amounts = (arguments.density, arguments.sparsity, getattr(arguments.pattern, "density", None))
    if amounts == (None, None, None):
        arguments.refuse("one of --density, --sparsity and --pattern N:M is needed")
    check_writable("--output", arguments.output)
    check_plot(arguments.plot)
    model, batches = model_of(arguments), batches_of(arguments)
    masks = find_masks(
        model,
        batches,
        density=arguments.density,
        sparsity=arguments.sparsity,
        rounds=arguments.rounds,
        schedule=arguments.schedule,
        scope=arguments.scope,
        pattern=arguments.pattern,
        min_density=arguments.min_density,
        checkpoint=arguments.checkpoint,
        **scoring_options(arguments),
    )
    print(masks.summary())
    print(provenance_line(masks.provenance))
    masks.save(arguments.output)
    print(f"masks: {arguments.output}")
    if arguments.plot is not None:
        reports.plot(reports.build(masks), arguments.plot)
        print(f"picture: {arguments.plot}")
