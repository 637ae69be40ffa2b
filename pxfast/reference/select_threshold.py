"""Scores as integers of the same order, and how many of them lie where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def order_keys(scores: Tensor) -> Tensor:
    """Maps scores to integers of their own width and order.

    A float's bits are a sign and a magnitude; the key is that number in two's complement, so that
    -0.0 and 0.0 share the key 0.

    Args:
        scores: float32, float64, bfloat16 or float16, of any shape.

    Returns:
        Contiguous int32, int64 or int16 keys of the same shape.
    """
    integer = INTEGERS[scores.element_size()]
    bits = scores.contiguous().view(integer)
    return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)


def living_keys(score: Tensor, alive: Tensor | None) -> Tensor:
    """The keys of the scores that are alive, in order: int64 [number of them]."""
    keys = order_keys(score)
    return (keys.flatten() if alive is None else keys[alive]).long()


def score_histogram(
    scores: Sequence[Tensor], alive: Sequence[Tensor | None], low: int, shift: int, bits: int
) -> Tensor:
    """Counts the alive scores in each of 2^bits intervals of 2^shift keys, and beyond them.

    Args:
        scores: tensors of one dtype and device.
        alive: for each a bool tensor of its shape, or None: all are.
        low: the least key of the first interval, a multiple of 2^shift.
        shift: an interval holds 2^shift keys.
        bits: there are 2^bits intervals.

    Returns:
        int64 [2^bits + 3]: the intervals, those above, those below, and NaN and infinite ones,
        which are also counted above or below by their sign.
    """
    size = 1 << bits
    high = min(low + (size << shift) - 1, torch.iinfo(torch.int64).max)
    counts = torch.zeros(size + 3, dtype=torch.int64, device=scores[0].device)
    for score, mask in zip(scores, alive, strict=True):
        keys = living_keys(score, mask)
        above, below = keys > high, keys < low
        within = keys[~above & ~below]
        counts[:size] += torch.bincount((within >> shift) - (low >> shift), minlength=size)
        infinity = order_keys(torch.tensor(torch.inf, dtype=score.dtype)).item()
        counts[size:] += torch.stack([above, below, keys.abs() >= infinity]).sum(1)
    return counts
