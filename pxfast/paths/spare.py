"""Memory of scores that one round of pruning leaves to the next.

The system gives memory page by page and clears it, which for scores of the model's size takes as
long as a third of their kernel pass.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor

# torch's own counts of who holds a tensor, which it does not promise: without them none is reused.
_COUNTED = hasattr(torch._C, "_storage_Use_Count") and hasattr(Tensor, "_use_count")


class Memory:
    """Scores that have been handed out, and may be written over once nobody else holds them."""

    def __init__(self) -> None:
        self._lent: dict[str, Tensor] = {}

    def lend(self, scores: Mapping[str, Tensor]) -> None:
        """Remember scores that are handed out now."""
        self._lent = dict(scores)

    def free(self) -> dict[str, Tensor]:
        """The scores that nobody holds any more, by name; the others are theirs for good."""
        lent, self._lent = self._lent, {}
        free = {}
        for name in list(lent):
            scores = lent.pop(name)
            if _held_once(scores):
                free[name] = scores
        return free


def _held_once(tensor: Tensor) -> bool:
    """Whether the caller's variable is all that holds a tensor: no other name, and no view."""
    if not _COUNTED:
        return False
    names = sys.getrefcount(tensor) - 2  # but this function's, and that of the count
    storage = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) - 1  # of this line
    others = tensor._use_count() - 1  # type: ignore[attr-defined]
    return names <= 1 and others == 0 and storage <= 1
