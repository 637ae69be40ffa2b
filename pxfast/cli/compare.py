"""``pxfast compare``: several criteria on one model."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import nn

import pxfast.data
from pxfast import criteria
from pxfast.cli.inputs import batches_of, check_plot, model_of
from pxfast.cli.options import (
    add_amount,
    add_batchnorm,
    add_data,
    add_max_memory,
    add_model,
    add_plot,
    add_scope,
    criterion,
)
from pxfast.compare import DEFAULT_CRITERIA, Comparison, InterruptedComparison, plot
from pxfast.compare import compare as find_comparison
from pxfast.errors import PxfastError
from pxfast.training import train_and_test

USAGE = "MODEL --data NAME (--density D | --sparsity S) [options]"
SUMMARY = "several criteria on one model"
TEXT = """\
Prunes your model by several criteria to the same density and shows, for each: rounds and time, the
layers that it empties, the densities of the sparsest and of the median layer, and which share of
the weights it keeps in common with px (kept by both, of those that either keeps). With --train,
what is left is trained, and so is the unpruned model: the accuracy says most. The model itself is
not changed. Ctrl-C shows what is finished.
"""
EXAMPLES = f"""\
criteria: {", ".join(criteria.NAMES[:-1])} and
{criteria.NAMES[-1]}. docs/criteria.md has their formulas and what they need. snip and grasp need
labels, which all data sets here have.

examples:
  pxfast compare pxfast.models:resnet20 --model-arg in_channels=1 --data digits --density 0.05
  pxfast compare pxfast.models:resnet20 --model-arg in_channels=1 --data digits --size 16 \\
      --density 0.02 --train 10 --plot densities.png
  pxfast compare timm:resnet50 --data imagefolder:imagenet --sparsity 0.9 --rounds 10 \\
      --criteria px synflow magnitude --json > comparison.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    add_model(parser)
    add_data(parser)
    group = parser.add_argument_group("pruning")
    add_amount(group, required=True)
    group.add_argument(
        "--criteria",
        nargs="+",
        type=criterion,
        metavar="NAME",
        help=f"what is compared (default: {' '.join(DEFAULT_CRITERIA)})",
    )
    group.add_argument(
        "--rounds",
        type=int,
        metavar="R",
        help="rounds of pruning by each criterion (default: as in its paper, 100 for the px and "
        "synflow families and ntk-sap, 1 for the others)",
    )
    add_scope(group)
    add_batchnorm(group, "statistics that BatchNorm uses, for px and px-joint")
    add_max_memory(group, "memory for scoring by px and px-joint")
    group.add_argument("--include", nargs="+", action="extend", metavar="GLOB", help="see prune")
    group.add_argument("--exclude", nargs="+", action="extend", metavar="GLOB", help="see prune")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train",
        type=int,
        metavar="EPOCHS",
        help="train on the training part of the data (SGD with momentum and a cosine schedule), "
        "and show the accuracy on the test part",
    )
    training.add_argument("--lr", type=float, default=0.05, help="learning rate at the start")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--json", action="store_true", help="print JSON, with all layers, instead of the table"
    )
    add_plot(results, "the densities")
    parser.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> None:
    """Prints the comparison."""
    check_plot(arguments.plot)
    train = _trainer(arguments)
    model, batches = model_of(arguments), batches_of(arguments)
    try:
        comparison = find_comparison(
            model,
            batches,
            density=arguments.density,
            sparsity=arguments.sparsity,
            criteria=arguments.criteria or DEFAULT_CRITERIA,
            rounds=arguments.rounds,
            scope=arguments.scope,
            batchnorm=arguments.batchnorm,
            include=arguments.include,
            exclude=arguments.exclude,
            max_memory=arguments.max_memory,
            train=train,
        )
    except InterruptedComparison as interrupted:
        _show(interrupted.comparison, arguments)
        raise
    _show(comparison, arguments)


def _show(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Prints and draws a comparison, also one that was interrupted."""
    if arguments.json:
        print(comparison.to_json())
    else:
        print(comparison.table())
        if arguments.train is not None:
            print("Each trained once: differences of a point or two mean nothing.")
    if arguments.plot is not None:
        plot(comparison, arguments.plot)
        if not arguments.json:
            print(f"picture: {arguments.plot}")


def _trainer(arguments: argparse.Namespace) -> Callable[[nn.Module], float] | None:
    """What trains and tests, on the data that the arguments name."""
    if arguments.train is None:
        return None
    if arguments.train < 1:
        raise PxfastError(f"--train must be at least 1 epoch, got {arguments.train}")
    train_set = pxfast.data.load(arguments.data, size=arguments.size)
    test_set = pxfast.data.load(arguments.data, train=False, size=arguments.size)
    return lambda model: train_and_test(
        model,
        train_set,
        test_set,
        epochs=arguments.train,
        lr=arguments.lr,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
