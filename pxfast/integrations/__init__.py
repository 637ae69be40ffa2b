"""pxfast inside the libraries that people already prune with: one small file per library.

A file is imported when it is first used, and with it its library:
``pxfast.integrations.torch_pruning.PXImportance`` needs torch-pruning, ``import pxfast`` does not.
docs/integrations.md lists all of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

ADAPTERS = sorted(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> ModuleType:
    if name not in ADAPTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return ADAPTERS
