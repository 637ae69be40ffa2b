"""From scores to masks: exact selection, masks that last, files that are always whole."""

from __future__ import annotations

from pxfast.selection.masks import Masks
from pxfast.selection.scores import Scores
from pxfast.selection.weights import find_weight

__all__ = ["Masks", "Scores", "find_weight"]
