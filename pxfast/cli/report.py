"""``pxfast report``: what masks leave of a network."""

from __future__ import annotations

import argparse
from pathlib import Path

from pxfast import report as reports
from pxfast.cli.inputs import batches_of, check_plot, check_writable, model_of, provenance_line
from pxfast.cli.options import add_data, add_model, add_plot
from pxfast.selection.masks import Masks
from pxfast.selection.scores import Scores

USAGE = "MASKS [--model MODEL --data NAME] [--scores FILE] [--json | --csv] [options]"
SUMMARY = "what is left of each layer"
TEXT = """\
Prints how many weights masks keep in every layer, and how the masks were made. With the model and
data also: FLOPs before and after, the share of the network's paths that runs through each layer,
and which empty layers are harmless branches and which are a collapse.
"""
EXAMPLES = """\
examples:
  pxfast report masks.safetensors
  pxfast report masks.safetensors --csv > densities.csv
  pxfast report masks.safetensors --model pxfast.models:resnet20 --model-arg in_channels=1 \\
      --data digits --html report.html --plot report.png
  pxfast report masks.safetensors --model torchvision:resnet50 --data random:3x224x224 --per-class 1
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("masks", type=Path, metavar="MASKS", help="a file that pxfast prune wrote")
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="FILE",
        help="scores by px or px-joint, to take the share of paths from; without it those of the "
        "pruned network are computed if there are model and data",
    )
    results = parser.add_argument_group("results")
    form = results.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of the table")
    form.add_argument("--csv", action="store_true", help="print CSV instead of the table")
    add_plot(results, "all layers")
    results.add_argument(
        "--html", type=Path, metavar="FILE", help="one self-contained web page with all of it"
    )
    add_model(parser, required=False)
    add_data(parser, required=False)
    parser.set_defaults(run=report, refuse=parser.error)


def report(arguments: argparse.Namespace) -> None:
    """Prints the report and writes its files."""
    if (arguments.model is None) != (arguments.data is None):
        arguments.refuse("--model and --data go together: give both or neither")
    check_plot(arguments.plot)
    if arguments.html is not None:
        check_writable("--html", arguments.html)
    masks = Masks.load(arguments.masks)
    scores = None if arguments.scores is None else Scores.load(arguments.scores)
    model = data = None
    if arguments.model is not None:
        model, data = model_of(arguments), batches_of(arguments)
    found = reports.build(masks, model, data, scores)
    if arguments.json:
        print(reports.to_json(found))
    elif arguments.csv:
        print(reports.to_csv(found), end="")
    else:
        print(reports.table(found))
        print(provenance_line(found.provenance))
        for name, meaning in reports.legend(found).items():
            print(f"{name}: {meaning}")
    quiet = arguments.json or arguments.csv
    if arguments.plot is not None:
        reports.plot(found, arguments.plot)
        if not quiet:
            print(f"picture: {arguments.plot}")
    if arguments.html is not None:
        reports.write_page(found, arguments.html)
        if not quiet:
            print(f"page: {arguments.html}")
