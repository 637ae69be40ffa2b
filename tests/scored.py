"""How tests compare two runs of score(), and the criteria they run it with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tolerances import close
from torch import Tensor

CRITERIA = ("px", "px-joint")


def assert_same(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float
) -> None:
    """The same weights in the same order, and of each the same scores within a tolerance."""
    assert list(actual) == list(expected)
    for name in expected:
        close(actual[name], expected[name], tolerance, name)


def assert_bit_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same weights in the same order, and of each the same scores to the bit."""
    assert list(actual) == list(expected)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
