"""Imports of packages that only some uses of pxfast need."""

from __future__ import annotations

import importlib
from types import ModuleType

from pxfast.errors import MissingPackageError


def require(module: str, purpose: str, install: str) -> ModuleType:
    """Imports an optional package, or says in one line what needs it and how to get it.

    Args:
        module: Full module name, such as ``"sklearn.datasets"``.
        purpose: What needs it, the subject of the message.
        install: What to give to ``pip install``.

    Returns:
        The imported module.

    Raises:
        MissingPackageError: If the package is not installed, or its own import fails.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        if missing == module.partition(".")[0]:
            reason = f"is not installed: pip install '{install}'"
            raise MissingPackageError(f"{purpose} needs {module}, which {reason}") from None
        raise MissingPackageError(f"{purpose} needs {module}, which needs {missing}") from error
    except Exception as error:  # such as an extension built for another torch
        raise MissingPackageError(
            f"{purpose} needs {module}, whose import fails: {type(error).__name__}: {error}"
        ) from error
