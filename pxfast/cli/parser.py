"""The command line's parser: what every command says of itself, put together."""

from __future__ import annotations

import argparse

from pxfast._version import __version__
from pxfast.cli import compare, doctor, prune, report, score

COMMANDS = {
    "score": score,
    "prune": prune,
    "report": report,
    "compare": compare,
    "doctor": doctor,
}
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
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            usage=f"pxfast {name} {module.USAGE}",
            help=module.SUMMARY,
            description=module.TEXT,
            epilog=module.EXAMPLES,
            formatter_class=_Help,
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_options(command)
    return parser
