"""Imports of packages that only some uses of pxfast need."""

from __future__ import annotations

import importlib
from types import ModuleType

from pxfast.errors import PxfastError


class MissingPackageError(PxfastError, ImportError):
    """A package that only this use of pxfast needs is not installed."""


def require(module: str, purpose: str, install: str) -> ModuleType:
    """Imports an optional package, or says in one line what needs it and how to get it.

    Args:
        module: Full module name, such as ``"sklearn.datasets"``.
        purpose: What needs it, the subject of the message.
        install: What to give to ``pip install``.

    Returns:
        The imported module.

    Raises:
        MissingPackageError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingPackageError(
            f"{purpose} needs {error.name}, which is not installed: pip install '{install}'"
        ) from None
