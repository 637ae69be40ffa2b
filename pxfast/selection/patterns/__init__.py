"""Patterns: what is kept or removed as one. docs/selection.md has examples."""

from __future__ import annotations

import re

from pxfast.selection.patterns.channels import Channels
from pxfast.selection.patterns.heads import HeadLayout, Heads
from pxfast.selection.patterns.nm import NM
from pxfast.selection.patterns.pattern import Pattern, SingleWeights, Units

__all__ = ["NM", "Channels", "HeadLayout", "Heads", "Pattern", "SingleWeights", "Units", "named"]


def named(pattern: Pattern | str | None) -> Pattern:
    """Returns the pattern that a name stands for: "2:4" and so on, "channels", "heads", or None.

    Raises:
        ValueError: If there is no pattern of that name.
        TypeError: If it is neither a name nor a pattern.
    """
    if pattern is None:
        return SingleWeights()
    if isinstance(pattern, Pattern):
        return pattern
    known = "'2:4' (or any N:M), 'channels', 'heads', an object of pxfast.patterns, or None"
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be {known}, got {pattern!r}")
    if numbers := re.fullmatch(r"(\d+):(\d+)", pattern):
        return NM(int(numbers[1]), int(numbers[2]))
    if pattern == "channels":
        return Channels()
    if pattern == "heads":
        return Heads()
    raise ValueError(f"pattern must be {known}, got {pattern!r}")
