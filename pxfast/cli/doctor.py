"""``pxfast doctor``: what runs here."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from pxfast import _native
from pxfast._version import __version__
from pxfast.ops._declare import kernels_of

USAGE = "[--debug]"
SUMMARY = "what runs here"
TEXT = "Prints versions, what was built, devices, instruction set, and what runs each op or why."
EXAMPLES = ""

_PACKAGES = ("torch", "numpy", "safetensors", "tqdm", "scikit-learn", "matplotlib", "pillow")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.set_defaults(run=doctor)


def doctor(_: argparse.Namespace) -> None:
    """Prints versions, what was built, devices, what runs each op, and why no kernel does."""
    print(f"pxfast {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    print(
        f"torch threads: {torch.get_num_threads()}, CUDA of torch: {torch.version.cuda or 'none'}"
    )
    for key, value in _native.describe().items():
        print(f"{key}: {value}")
    for index in range(torch.cuda.device_count()):
        print(f"cuda:{index}: {_tried(index)}")
    names = max(map(len, kernels_of))
    print(f"\n{'operation':{names}}  {'cpu':9}  {'cuda':9}  why no kernel")
    for name in sorted(kernels_of):
        served = {device: _why_not(name, device) for device in ("cpu", "cuda")}
        runs = "  ".join(f"{'reference' if why else 'kernel':9}" for why in served.values())
        reasons = "; ".join(f"{device}: {why}" for device, why in served.items() if why)
        print(f"{name:{names}}  {runs}  {reasons}".rstrip())
    print("\nThe reference is plain torch. docs/kernels.md says which sizes take which kernel.")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _why_not(name: str, device: str) -> str | None:
    """Why the reference serves an op on a kind of device; None where a kernel does."""
    key = f"pxfast::{name}"
    if torch._C._dispatch_has_kernel_for_dispatch_key(key, device.upper()):
        return None
    if device not in kernels_of[name]:
        return "torch does it best"
    return _native.why_not(device)


def _tried(index: int) -> str:
    """Whether a kernel runs on this GPU, by running one."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    try:
        bits = torch.ops.pxfast.pack_ones(mask.to(f"cuda:{index}"))
        return "kernels run" if bits.item() == 1 else "kernels compute wrong results"
    except RuntimeError as error:
        return f"kernels do not run: {str(error).splitlines()[0]}"
