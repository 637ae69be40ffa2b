"""Libraries that tests need. PXFAST_REQUIRE=timm,lightning makes these mandatory."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bench._libraries import load


def library(name: str) -> Any:
    """Import a library by its module's name; skip the test, or fail it where it is required."""
    try:
        return load(name)
    except Exception as error:  # wheels built for another torch fail in many ways
        reason = f"{name} cannot be imported: {type(error).__name__}: {error}"
        package = name.partition(".")[0]
        if package in os.environ.get("PXFAST_REQUIRE", "").split(","):
            pytest.fail(f"PXFAST_REQUIRE={package}: {reason}")
        pytest.skip(reason, allow_module_level=True)
