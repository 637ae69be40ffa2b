"""The exact k-th largest score over many tensors, without a sort and without joining them.

A radix select on the bits of the scores: IEEE floats, read as integers, keep their order (negative
ones after flipping the bits below the sign). Each pass counts how many keys hold each value of the
next 16 bits, highest first, and descends into the one that holds the k-th: two passes for float32,
bfloat16 and float16, four for float64. Counts are integers, so the result is exact, and counts of
several ranks add up. `select_threshold` and `write_masks` are separate as the counts of all tensors
must be known before the first mask can be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pxfast.errors import RangeError

DIGIT_BITS = 16
DIGITS = 1 << DIGIT_BITS


class Threshold(NamedTuple):
    """Where the kept scores end.

    Attributes:
        key: Order key of the lowest kept score. Every score with a higher key is kept.
        ties: How many scores with exactly this key are kept: the first ones in order.
        dtype: The dtype, float32 or float64, in which keys are formed.
    """

    key: int
    ties: int
    dtype: torch.dtype


def order_keys(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Maps scores to integers of the same order.

    Args:
        scores: Floating scores of any shape.
        dtype: float32 or float64; every score must be exact in it.

    Returns:
        Contiguous int32 or int64 keys of the same shape. -0.0 and 0.0 share the key 0.
    """
    integer, bits = (torch.int32, 32) if dtype == torch.float32 else (torch.int64, 64)
    raw = scores.to(dtype).contiguous().view(integer)
    keys = raw ^ ((raw >> (bits - 1)) & torch.iinfo(integer).max)
    return keys.masked_fill_(keys == -1, 0)


def digit_counts(keys: Tensor, shift: int, prefix: int | None) -> Tensor:
    """Counts the values of 16 bits of the keys.

    Args:
        keys: 1-D integer keys.
        shift: Position of the lowest of the 16 bits.
        prefix: Count only keys whose bits above these equal it; None for the highest 16 bits,
            which are counted from the most negative value up.

    Returns:
        int64 counts [65536], on the CPU.
    """
    if prefix is None:
        digits = (keys >> shift) + DIGITS // 2
    else:
        digits = (keys[(keys >> (shift + DIGIT_BITS)) == prefix] >> shift) & (DIGITS - 1)
    return torch.bincount(digits, minlength=DIGITS).cpu()


def select_threshold(
    scores: Sequence[Tensor], keep: int, alive: Sequence[Tensor | None] | None = None
) -> Threshold:
    """Finds the threshold that keeps exactly the `keep` highest scores.

    Args:
        scores: Floating tensors of any shapes and devices, in parameter order.
        keep: How many scores to keep: 1 to the number of alive ones.
        alive: Bool tensors of the same shapes, or None where every score counts; the others are
            as if they were not there.

    Returns:
        The threshold for `write_masks`.

    Raises:
        ValueError: If `keep` is out of its range.
        RangeError: If an alive score is NaN or infinite.
    """
    alive = alive or [None] * len(scores)
    total = sum(
        score.numel() if mask is None else int(mask.count_nonzero())
        for score, mask in zip(scores, alive, strict=True)
    )
    if not 1 <= keep <= total:
        raise ValueError(f"select_threshold: keep must be in 1..{total} (alive scores), got {keep}")
    dtype = _key_dtype(scores)
    prefix, remaining = None, keep
    for shift in range(8 * dtype.itemsize - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = torch.zeros(DIGITS, dtype=torch.int64)
        for score, mask in zip(scores, alive, strict=True):
            keys = order_keys(score, dtype)
            counts += digit_counts(keys.view(-1) if mask is None else keys[mask], shift, prefix)
        if prefix is None:
            _refuse_non_finite(counts, dtype)
        at_or_above = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_or_above >= remaining).nonzero()[-1])
        remaining -= int(at_or_above[digit] - counts[digit])
        prefix = digit - DIGITS // 2 if prefix is None else (prefix << DIGIT_BITS) | digit
    assert prefix is not None
    return Threshold(key=prefix, ties=remaining, dtype=dtype)


def write_masks(
    scores: Sequence[Tensor], threshold: Threshold, alive: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    """Writes the masks of a threshold: ties keep the earlier position.

    Args:
        scores: The tensors that `select_threshold` read.
        threshold: What it returned.
        alive: The masks that it was given.

    Returns:
        Contiguous bool tensors of the scores' shapes, on their devices, with exactly `keep`
        ones altogether.
    """
    masks, ties = [], threshold.ties
    for score, mask in zip(scores, alive or [None] * len(scores), strict=True):
        keys = order_keys(score, threshold.dtype)
        kept, equal = keys > threshold.key, keys == threshold.key
        if mask is not None:
            kept &= mask
            equal &= mask
        if ties:
            first = equal.view(-1).nonzero()[:ties, 0]
            kept.view(-1)[first] = True
            ties -= len(first)
        masks.append(kept)
    return masks


def _key_dtype(scores: Sequence[Tensor]) -> torch.dtype:
    """Returns the dtype in which all scores are exact: float64 if one is, else float32."""
    for score in scores:
        if not score.is_floating_point():
            raise TypeError(f"select_threshold: scores must be floating, got {score.dtype}")
    is_double = any(score.dtype == torch.float64 for score in scores)
    return torch.float64 if is_double else torch.float32


def _refuse_non_finite(counts: Tensor, dtype: torch.dtype) -> None:
    """Raises if the counts of the highest 16 bits hold an exponent of all ones."""
    infinity = int(order_keys(torch.tensor(torch.inf), dtype)) >> (8 * dtype.itemsize - DIGIT_BITS)
    finite = counts[DIGITS // 2 - infinity : DIGITS // 2 + infinity]
    if bad := int(counts.sum() - finite.sum()):
        raise RangeError(f"select_threshold: {bad} scores are NaN or infinite; they have no order")
