"""The command ``pxfast``: scores, masks and reports from a shell."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from pxfast.cli.parser import build_parser
from pxfast.errors import PxfastError

_USER_ERROR, _INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments after the program's name; by default those of the process.

    Returns:
        Exit status: 0, 1 after an error in the input, 130 after Ctrl-C. A wrong option leaves
        through argparse with status 2.
    """
    arguments = build_parser().parse_args(argv)
    try:
        with _plain_warnings():
            arguments.run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        resumable = getattr(arguments, "checkpoint", None) is not None
        advice = "; the same command goes on from the checkpoint" if resumable else ""
        return _fail(arguments, f"interrupted{advice}", _INTERRUPTED)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PxfastError as error:
        return _fail(arguments, str(error), _USER_ERROR)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        message = f"{error or type(error).__name__} (--debug shows where)"
        return _fail(arguments, message, _USER_ERROR)
    return 0


def _fail(arguments: Any, message: str, status: int) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"pxfast {arguments.command}: {message}", file=sys.stderr)
    return status


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints warnings as one line each, above a progress bar if there is one."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        tqdm.write(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
