"""The options of the command line and their help."""

from __future__ import annotations

import argparse
from pathlib import Path

from pxfast import criteria
from pxfast._version import __version__
from pxfast.cli import compare, report
from pxfast.cli.commands import prune, score
from pxfast.cli.doctor import doctor
from pxfast.data import DATA_NAMES
from pxfast.loading import MODEL_NAMES
from pxfast.selection.patterns import Pattern, named

_TOP = """\
Finds which weights of a network to keep, before training it, by Path eXclusion
(Iurada et al., CVPR 2024), from a few images per class.
"""
_TOP_EXAMPLES = """\
examples:
  pxfast prune pxfast.models:resnet20 --model-arg in_channels=1 --data digits --density 0.02
  pxfast report masks.safetensors --plot densities.png
  pxfast prune --help
"""
_SCORE_USAGE = "MODEL --data NAME [options]"
_SCORE = """\
Scores every prunable weight (of linear and convolution layers): the higher, the more it is worth
keeping. Writes the scores and prints the total of each layer. Scores of a layer that every path
crosses add up to 1.
"""
_SCORE_EXAMPLES = """\
examples:
  pxfast score pxfast.models:vgg16 --data random:3x32x32
  pxfast score mynets.py:wide --model-arg width=64 --weights wide.pth --data imagefolder:photos
  pxfast score torchvision:resnet18 --data random:3x224x224 --criterion px-joint
"""
_PRUNE_USAGE = "MODEL --data NAME (--density D | --sparsity S | --pattern N:M) [options]"
_PRUNE = """\
Finds masks of a given density: in every round the network is scored with what is left of it, and
the lowest scores go. Removed weights never return. The network itself is not changed; masks are
applied in Python: pxfast.Masks.load("masks.safetensors").apply_(model).
"""
_PRUNE_EXAMPLES = """\
The defaults are the paper's settings: 10 samples per class, 100 rounds, exponential schedule,
all layers compete.

examples:
  pxfast prune pxfast.models:resnet20 --model-arg in_channels=1 --data digits --density 0.02 \\
      --output masks.safetensors --plot densities.png
  pxfast prune timm:resnet50 --data imagefolder:imagenet --sparsity 0.98 --checkpoint run.ckpt
  pxfast prune mynets.py:wide --data cifar10:data --density 0.1 --exclude 'head.*' 'stem.*'
  pxfast prune mynets.py:wide --data cifar10:data --pattern 2:4
"""
_DOCTOR = "Prints versions, what was built, devices, instruction set, and what runs each operation."


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions, and adds the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.default in (None, False, [], argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser; the parsed arguments carry the command's function as ``run``."""
    parser = argparse.ArgumentParser(
        "pxfast", description=_TOP, epilog=_TOP_EXAMPLES, formatter_class=_Help
    )
    parser.add_argument("--version", action="version", version=f"pxfast {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands, each with its --help"
    )

    def command(
        name: str, usage: str, summary: str, text: str, examples: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            usage=f"pxfast {name} {usage}",
            help=summary,
            description=text,
            epilog=examples,
            formatter_class=_Help,
        )
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return added

    _add_score(command("score", _SCORE_USAGE, "one score per weight", _SCORE, _SCORE_EXAMPLES))
    _add_prune(command("prune", _PRUNE_USAGE, "masks of a density", _PRUNE, _PRUNE_EXAMPLES))
    report_parser = command("report", report.USAGE, report.SUMMARY, report.TEXT, report.EXAMPLES)
    report.add_options(report_parser)
    _add_model(report_parser, required=False)
    _add_data(report_parser, required=False)
    compare_parser = command(
        "compare", compare.USAGE, compare.SUMMARY, compare.TEXT, compare.EXAMPLES
    )
    _add_model(compare_parser)
    _add_data(compare_parser)
    compare.add_options(compare_parser)
    doctor_parser = command("doctor", "[--debug]", "what runs here", _DOCTOR, "")
    doctor_parser.set_defaults(run=doctor)
    return parser


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_data(parser)
    _add_scoring(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=Path("scores.safetensors"),
        help="where the scores go",
    )
    parser.set_defaults(run=score)


def _add_prune(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_data(parser)
    group = parser.add_argument_group("pruning")
    amount = group.add_mutually_exclusive_group()
    amount.add_argument(
        "--density", type=float, metavar="D", help="fraction of the weights to keep, in (0, 1]"
    )
    amount.add_argument(
        "--sparsity", type=float, metavar="S", help="fraction to remove, in [0, 1): 1 - density"
    )
    group.add_argument("--rounds", type=int, metavar="R", default=100, help="rounds of pruning")
    group.add_argument(
        "--schedule",
        choices=("exponential", "linear"),
        default="exponential",
        help="densities of the rounds: D^(r/R), or equal steps",
    )
    group.add_argument(
        "--scope",
        choices=("global", "layer"),
        default="global",
        help="all weights compete, or every layer keeps the same fraction",
    )
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
    _add_scoring(parser)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=Path("masks.safetensors"),
        help="where the masks go",
    )
    results.add_argument(
        "--plot", type=Path, metavar="FILE", help="picture of the densities: .png, .svg or .pdf"
    )
    parser.set_defaults(run=prune, refuse=parser.error)


def _pattern(text: str) -> Pattern:
    try:
        return named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Declares the model's options; an optional model is an option itself."""
    group = parser.add_argument_group("model")
    name = "model" if required else "--model"
    group.add_argument(name, metavar="MODEL", help=f"one of {MODEL_NAMES}")
    group.add_argument(
        "--model-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="keyword argument of the factory, such as num_classes=10; may be repeated",
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint of the weights, .safetensors or torch (read with weights_only=True); "
        "without it the network is as its factory initialises it from --seed",
    )
    group.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="where the model runs, such as cuda or cuda:1",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the model and the samples"
    )


def _add_data(parser: argparse.ArgumentParser, required: bool = True) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        required=required,
        metavar="NAME",
        help=f"one of {DATA_NAMES}; the training part, nothing is downloaded",
    )
    group.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="height and width of digits (default 8) and imagefolder (default 224)",
    )
    group.add_argument(
        "--per-class", type=int, default=10, metavar="N", help="samples of every class"
    )
    group.add_argument(
        "--batch-size", type=int, default=100, metavar="N", help="samples in memory at a time"
    )


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--criterion",
        choices=criteria.NAMES,
        default="px",
        metavar="NAME",
        help="px: the paper's; px-joint: weights and data in one sum over paths; to compare with: "
        f"{', '.join(criteria.NAMES[2:])}",
    )
    group.add_argument(
        "--batchnorm",
        choices=("running", "data"),
        default="running",
        help="statistics that BatchNorm uses",
    )
    group.add_argument(
        "--masks", type=Path, metavar="FILE", help="masks to start from: what they removed stays so"
    )
    group.add_argument(
        "--include",
        nargs="+",
        action="extend",
        metavar="GLOB",
        help="weights to score, such as 'layer1.*' (default: all linear and convolution weights)",
    )
    group.add_argument(
        "--exclude", nargs="+", action="extend", metavar="GLOB", help="weights to leave alone"
    )
