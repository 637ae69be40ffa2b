"""Libraries that tests and benchmarks use, also where their compiled operators do not load."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch

_KEPT_ALIVE: list[Any] = []


def load(name: str) -> Any:
    """Import a library without its warnings.

    Args:
        name: a module, such as "torchvision", "timm.layers" or "lightning".

    Raises:
        Exception: whatever the import raises; wheels built for another torch fail in many ways.
    """
    _declare_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _declare_missing_operators() -> None:
    """torchvision's wheels do not load their C++ operators under a CPU-only torch.

    Its Python side registers fakes for two of them at import, which needs their schemas.
    """
    if _KEPT_ALIVE or hasattr(torch.ops.torchvision, "nms"):
        return
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT_ALIVE.append(operators)
