"""Weights that are not 0 although their squares are."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor

PART = 2**20  # weights that are looked at together: they stay in a CPU's cache


def underflowed(theta: Tensor, mask: Tensor | None, dtype: torch.dtype) -> int:
    """How many kept weights have a square below the range of a dtype.

    Args:
        theta: θ, of any shape and dtype.
        mask: M, a bool tensor of θ's shape, or None where all are kept.
        dtype: of the squares.

    Nothing of θ's size is allocated.
    """
    if theta.numel() == 0:
        return 0
    rows = max(1, PART * theta.shape[0] // theta.numel())
    masks = repeat(None) if mask is None else mask.split(rows)
    squares = torch.empty_like(theta[:rows], dtype=dtype)
    count = 0
    for values, kept in zip(theta.split(rows), masks, strict=False):
        values = values.to(dtype)
        here = torch.square(values, out=squares[: len(values)])
        if float(here.amin()) > 0:  # masked weights included
            continue
        lost = (here == 0) & (values != 0)
        count += int((lost if kept is None else lost & kept).count_nonzero())
    return count
