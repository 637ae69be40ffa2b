"""Libraries of models that tests need. PXFAST_REQUIRE=torchvision,timm makes them mandatory."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import pytest
import torch

_KEPT_ALIVE: list[Any] = []


def library(name: str) -> Any:
    """Import torchvision or timm; skip the test, or fail it where the library is required."""
    try:
        _declare_missing_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:  # wheels built for another torch fail in many ways
        reason = f"{name} cannot be imported: {type(error).__name__}: {error}"
        if name in os.environ.get("PXFAST_REQUIRE", "").split(","):
            pytest.fail(f"PXFAST_REQUIRE={name}: {reason}")
        pytest.skip(reason)


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
