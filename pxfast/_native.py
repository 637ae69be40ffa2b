"""Loads the kernels, libpxfast.so, and says what they were built for."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch

from pxfast._version import __version__

LIBRARY = Path(__file__).with_name("libpxfast.so")


def _load() -> str | None:
    """Load the library. Returns None, or why there are no kernels and what to do."""
    rebuild = "build it with `pip install .` from the sources of pxfast"
    if not LIBRARY.exists():
        return f"{LIBRARY} does not exist: {rebuild}"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY} does not load under torch {torch.__version__}: {error}; {rebuild}"
    return None


def _age() -> str | None:
    """None, or that the loaded library is another version's. Operators that it lacks fall back."""
    if problem is not None or (built := torch.ops.pxfast.version()) == __version__:
        return None
    return (
        f"pxfast {__version__} found kernels of pxfast {built} in {LIBRARY}: "
        "build it with `pip install .` from the sources of pxfast"
    )


problem: str | None = _load()
stale: str | None = _age()
if stale is not None:
    warnings.warn(stale, stacklevel=2)


def describe() -> dict[str, str]:
    """What was built and what of it is in use, for `pxfast doctor`.

    Returns:
        "kernels": the library's path, or why there is none, or that it is another version's. Where
        there is one also "cpu": the instruction set in use (base, avx2 or avx512, capped by the
        environment variable PXFAST_CPU_ISA), and "cuda": what it was built for and the devices, why
        none can be used, or "not built".
    """
    if problem is not None:
        return {"kernels": problem}
    ops = torch.ops.pxfast
    return {"kernels": stale or str(LIBRARY), "cpu": ops.cpu_isa(), "cuda": ops.cuda_status()}


def why_not(device: str) -> str:
    """Why an op that has kernels for "cpu" or "cuda" runs as its reference there."""
    if problem is not None:
        return "no library"
    if device == "cuda" and torch.ops.pxfast.cuda_status() == "not built":
        return f"{LIBRARY.name} was built without CUDA"
    return f"{LIBRARY.name} is older than the op, build it again"


@functools.cache
def warn_of_fallback(device: str) -> None:
    """Say, once per kind of device, that ops run as their slow reference there."""
    reason = problem or why_not(device)
    warnings.warn(
        f"pxfast: no kernels for {device} tensors, the slower reference runs instead ({reason})",
        stacklevel=4,
    )
