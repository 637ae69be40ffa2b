"""Sums of scores that are the same on every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def row_sums(rows: Tensor) -> Tensor:
    """Sums each row, to the same bits in whatever order a device adds.

    Each term is cut, relative to a power of two near its row's largest, into two integers that are
    small enough for float64 to add without rounding: integer sums have no order (after Demmel and
    Nguyen, "Fast Reproducible Floating-Point Summation", ARITH 2013). One rounding joins them.
    What lies below 2^-80 of the largest term of a row of up to 4096 terms (2^-60 for 4 million) is
    dropped.

    Args:
        rows: Finite floating tensor [G, n].

    Returns:
        float64 tensor [G].
    """
    rows = rows.double()
    if rows.shape[1] == 0:
        return rows.sum(1)
    bits = 52 - math.ceil(math.log2(rows.shape[1]))  # n terms below 2^(bits + 1) add up to 2^53
    largest = rows.abs().amax(1, keepdim=True)
    # A power of two with |term| < 2 · scale; halved first, as 2^1024 is no float64.
    scale = largest / torch.frexp(largest).mantissa.mul(2)
    scale = scale.masked_fill(largest == 0, 1.0)
    scaled = rows / scale * 2.0**bits
    high = scaled.trunc()
    low = ((scaled - high) * 2.0**bits).trunc()
    return (high.sum(1) + low.sum(1) * 2.0**-bits) * 2.0**-bits * scale[:, 0]
