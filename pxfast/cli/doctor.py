"""``pxfast doctor``: what runs here."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from pxfast import _native
from pxfast._version import __version__
from pxfast.ops._declare import declared

USAGE = "[--debug]"
SUMMARY = "what runs here"
TEXT = "Prints versions, what was built, devices, instruction set, and what runs each operation."
EXAMPLES = ""

_PACKAGES = ("torch", "numpy", "safetensors", "tqdm", "scikit-learn", "matplotlib", "pillow")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.set_defaults(run=doctor)


def doctor(_: argparse.Namespace) -> None:
    """Prints versions, what was built, devices, and what runs each operation."""
    print(f"pxfast {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    print(
        f"torch threads: {torch.get_num_threads()}, CUDA of torch: {torch.version.cuda or 'none'}"
    )
    for key, value in _native.describe().items():
        print(f"{key}: {value}")
    names = max(map(len, declared))
    print(f"\n{'operation':{names}}  {'cpu':9}  cuda")
    for name in sorted(declared):
        print(f"{name:{names}}  {_runs(name, 'CPU'):9}  {_runs(name, 'CUDA')}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _runs(name: str, key: str) -> str:
    """What serves an op: a kernel of libpxfast.so, or the reference in plain torch."""
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"pxfast::{name}", key)
    return "kernel" if registered else "reference"
