"""Run one benchmark: `python bench/run.py JOB [options]`, for example `score --model resnet20`.

Every module of this folder whose name has no leading underscore and that has a function
`measure(arguments) -> Result` is a job; `add_arguments(parser)` declares its options, and its
docstring is its help. The result goes to `bench/results/<job>-<subject>-<device>.json`, from which
`python bench/tables.py` writes the tables of README.md and docs/results.md.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path
from types import ModuleType

# This folder last: its select.py is not the standard library's.
sys.path.sort(key=lambda path: Path(path).resolve() == Path(__file__).resolve().parent)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench._machine import ROOT, machine
from bench._result import RESULTS, Result, machine_line, markdown


def jobs() -> dict[str, ModuleType]:
    """Return the module of every job, by the job's name."""
    found = {}
    for path in sorted(Path(__file__).resolve().parent.glob("[!_]*.py")):
        if path.stem != "run":
            module = importlib.import_module(f"bench.{path.stem}")
            if hasattr(module, "measure"):
                found[path.stem.replace("_", "-")] = module
    return found


def parser() -> argparse.ArgumentParser:
    """Return the command line, with one subcommand per job."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    subcommands = top.add_subparsers(dest="job", required=True, metavar="JOB")
    for name, module in jobs().items():
        doc = module.__doc__ or ""
        command = subcommands.add_parser(
            name,
            help=doc.partition("\n")[0].replace("%", "%%"),
            description=doc,
            formatter_class=_Help,
        )
        command.add_argument("--threads", type=int, help="threads of torch (its own default)")
        command.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
        module.add_arguments(command)
        command.set_defaults(measure=module.measure)
    return top


def main(argv: list[str] | None = None) -> Result:
    """Run the job that the command line names, print its table and write its JSON file."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    facts = machine()  # before the run: the commit whose code is loaded
    print(machine_line(facts), flush=True)
    result: Result = arguments.measure(arguments)
    result.job, result.machine = arguments.job, facts
    result.command = shlex.join(["python", "bench/run.py", *argv])
    print(markdown(result.rows), *result.notes, sep="\n")
    path = result.save(arguments.results)
    print(f"written to {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return result


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the docstring's own line breaks and with defaults."""


if __name__ == "__main__":
    main()
