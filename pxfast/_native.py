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
    if not LIBRARY.exists():
        return f"{LIBRARY} does not exist: build it with `pip install .`"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return (
            f"{LIBRARY} does not load under torch {torch.__version__}: {error}; rebuild it with `pip install .`"
        )
    if (built := torch.ops.pxfast.version()) != __version__:
        warnings.warn(
            f"pxfast {__version__} loaded kernels of version {built}: rebuild them with `pip install .`",
            stacklevel=2,
        )
    return None


problem: str | None = _load()


def describe() -> dict[str, str]:
    """What was built and what of it is in use, for `pxfast doctor`.

    Returns:
        "kernels": the library's path, or why there is none; and where there is one, "cpu": the instruction set
        in use (base, avx2 or avx512; the environment variable PXFAST_CPU_ISA caps it), "cuda": the devices, why
        none can be used, or "not built".
    """
    if problem is not None:
        return {"kernels": problem}
    ops = torch.ops.pxfast
    return {"kernels": str(LIBRARY), "cpu": ops.cpu_isa(), "cuda": ops.cuda_status()}


@functools.cache
def warn_of_fallback(device: str) -> None:
    """Say, once per kind of device, that ops run as their slow reference there."""
    reason = problem or f"{LIBRARY.name} was built without kernels for it"
    warnings.warn(
        f"pxfast: no kernels for {device} tensors, so the slow reference in PyTorch runs ({reason})", stacklevel=4
    )
