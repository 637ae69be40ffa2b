"""The threshold that keeps exactly the highest scores of many tensors, found by counting.

Nothing is sorted or joined. Every score has an integer key of the same order
(`pxfast.reference.select_threshold.order_keys`). One read of all scores counts how many lie in each
of 2^bits intervals of keys; the next one counts within the interval that holds the threshold, until
an interval's edge parts exactly `keep` scores from the others. Counts of several devices or ranks
can be added, because `narrow`, which picks the interval, needs nothing else:

    bins = Bins.whole(dtype)
    while isinstance(bins, Bins):
        counts = all_reduce(score_histogram(my_scores, my_alive, bins))
        bins = narrow(counts, bins, keep)

For large inputs the first intervals are laid around the threshold of a sample. If the sample
misled, the read is not lost: it says on which side the threshold lies. float32 takes two reads as
a rule and never more than three, bfloat16 and float16 one or two. float64 takes two as a rule, and
more only where many scores next to the threshold agree in their first tens of bits.
csrc/select_threshold.h is the kernels' contract.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pxfast.errors import RangeError
from pxfast.ops._checks import name_of
from pxfast.ops._declare import declare
from pxfast.ops._scores import Alive, alike, check_scores, common_dtype
from pxfast.reference import select_threshold as reference

SAMPLE = 1 << 13  # scores that are looked at before the first read,
SAMPLED = 1 << 20  # where there are more than this,
DEVIATIONS = 6  # to know the threshold within that many standard deviations of a sample's rank;
CERTAIN = 24  # from this rank on, some of the sample lie above the threshold but for e^-24
NARROW_BITS = 12  # of counts that each thread has in its cache
WIDE_BITS = 16  # of counts that one thread has for all


@dataclass(frozen=True)
class Threshold:
    """Which scores are kept: those above a key, and the first of those that equal it.

    Attributes:
        key: As `order_keys` forms them.
        ties: How many of the scores with exactly this key are kept, the first ones in order.
        equal: How many there are; 0 where none of them is kept.
        dtype: The dtype in which keys are formed.
    """

    key: int
    ties: int
    equal: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Bins:
    """2^bits neighbouring intervals of 2^shift keys each.

    Attributes:
        low: The least key of the first, a multiple of 2^shift.
        shift: The logarithm of an interval's number of keys.
        bits: The logarithm of the number of intervals.
        dtype: The dtype in which keys are formed.
    """

    low: int
    shift: int
    bits: int
    dtype: torch.dtype

    @classmethod
    def covering(cls, first: int, last: int, bits: int, dtype: torch.dtype) -> Bins:
        """Returns the narrowest intervals that hold two keys and all between them."""
        shift = 0
        while (last >> shift) - (first >> shift) >= 1 << bits:
            shift += 1
        return cls(first >> shift << shift, shift, bits, dtype)

    @classmethod
    def whole(cls, dtype: torch.dtype) -> Bins:
        """Returns the intervals that hold every key."""
        least, most = key_range(dtype)
        return cls.covering(least, most, WIDE_BITS, dtype)


def key_range(dtype: torch.dtype) -> tuple[int, int]:
    """Returns the least and the greatest key that bits of a dtype can have."""
    info = torch.iinfo(reference.INTEGERS[dtype.itemsize])
    return info.min, info.max


def score_histogram(scores: Sequence[Tensor], alive: Alive | None, bins: Bins) -> Tensor:
    """Counts the scores that are alive in each interval, and beyond the intervals.

    Args:
        scores: contiguous tensors of bins.dtype on one device, any shapes.
        alive: for each a bool tensor of its shape, or None: all are. None: all of all are.
        bins: the intervals.

    Returns:
        int64 counts [2^bits + 3] on the scores' device: of the intervals, of the scores above, of
        those below, and of those that are NaN or infinite (counted above or below as well).

    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Example:
        >>> scores = [torch.tensor([0.5, 2.0, -1.0]), torch.tensor([0.0])]
        >>> halves = Bins(low=-(2**31), shift=31, bits=1, dtype=torch.float32)
        >>> score_histogram(scores, None, halves)  # negative, others; above, below, not finite
        tensor([1, 3, 0, 0, 0])
    """
    masks = list(alive) if alive is not None else [None] * len(scores)
    return torch.ops.pxfast.score_histogram(list(scores), masks, bins.low, bins.shift, bins.bits)


def narrow(counts: Tensor, bins: Bins, keep: int) -> Bins | Threshold:
    """Picks the interval that holds the threshold. A function of its arguments alone.

    Args:
        counts: what `score_histogram` returned for the bins, or sums of it over ranks.
        bins: the intervals.
        keep: how many scores are to be kept: 1 to the number of alive ones.

    Returns:
        The threshold if the counts tell it, else the intervals to count in next.
    """
    size, (least, most) = 1 << bins.bits, key_range(bins.dtype)
    inside, above = counts[:size], int(counts[size])
    last = bins.low + (size << bins.shift) - 1
    if keep <= above:
        return Bins.covering(last + 1, most, WIDE_BITS, bins.dtype)
    at_or_above = inside.flip(0).cumsum(0).flip(0) + above
    if keep > int(at_or_above[0]):
        return Bins.covering(least, bins.low - 1, WIDE_BITS, bins.dtype)
    chosen = int((at_or_above >= keep).nonzero()[-1])
    within = int(inside[chosen])
    wanted = keep - (int(at_or_above[chosen]) - within)
    first = bins.low + (chosen << bins.shift)
    if bins.shift == 0:
        return Threshold(first, wanted, within, bins.dtype)
    if wanted == within:  # the interval's edge parts them already
        return Threshold(max(first - 1, least), 0, 0, bins.dtype)
    return Bins.covering(first, first + (1 << bins.shift) - 1, bins.bits, bins.dtype)


def select_threshold(
    scores: Sequence[Tensor],
    keep: int,
    alive: Alive | None = None,
    names: Sequence[str] | None = None,
) -> Threshold:
    """Finds the threshold that keeps exactly the `keep` highest scores.

    Args:
        scores: floating tensors of any shapes, in parameter order. Tensors of other strides, dtypes
            or devices than the common ones are copied first.
        keep: how many scores to keep: 1 to the number of alive ones.
        alive: bool tensors of the same shapes, or None where every score counts; the others are as
            if they were not there.
        names: what errors call the tensors; their places in `scores` by default.

    Returns:
        The threshold for `write_masks`.

    Raises:
        ValueError: `keep` is out of its range, or shapes do not fit.
        TypeError: scores are not floating.
        pxfast.errors.RangeError: an alive score is NaN or infinite.

    Example:
        >>> scores = [torch.tensor([0.1, 0.7]), torch.tensor([0.7, 0.9])]
        >>> threshold = select_threshold(scores, keep=2)
        >>> threshold.ties, threshold.equal  # of the two 0.7, the first one
        (1, 2)
    """
    if not scores:
        raise ValueError(f"select_threshold: keep must be in 1..0 (alive scores), got {keep}")
    dtype = common_dtype("select_threshold", scores)
    scores, masks = alike(scores, alive, dtype)
    step: Bins | Threshold = _first_bins(scores, masks, keep)
    checked = False
    while isinstance(step, Bins):
        counts = score_histogram(scores, masks, step).cpu()
        if not checked:
            _check_counts(counts, keep, scores, masks, names)
            checked = True
        step = narrow(counts, step, keep)
    return step


def _first_bins(scores: Sequence[Tensor], alive: Alive, keep: int) -> Bins:
    """Intervals around the threshold of a sample; those of all keys where there are few scores."""
    dtype, total = scores[0].dtype, sum(score.numel() for score in scores)
    if total <= SAMPLED:
        return Bins.whole(dtype)
    keys = _sample(scores, alive, total).sort(descending=True).values
    rank = min(max(keep / total, 0.0), 1.0) * SAMPLE
    margin = DEVIATIONS * math.sqrt(rank * (1 - rank / SAMPLE)) + DEVIATIONS
    first, last = math.floor(rank - margin), math.ceil(rank + margin)
    if rank >= CERTAIN:
        first = max(first, 0)
    infinity = int(reference.order_keys(torch.tensor(torch.inf, dtype=dtype)))
    high = int(keys[first]) if 0 <= first < len(keys) else infinity
    low = int(keys[last]) if last < len(keys) else -infinity
    return Bins.covering(low, max(low, high), NARROW_BITS, dtype)


def _sample(scores: Sequence[Tensor], alive: Alive, total: int) -> Tensor:
    """The keys of about SAMPLE scores, those of them that are alive.

    They lie at the multiples of the golden ratio modulo 1, which fill the positions evenly and meet
    no period of rows and columns.
    """
    golden = (math.sqrt(5) - 1) / 2
    places = (torch.arange(SAMPLE, dtype=torch.float64) * golden % 1 * total).long().sort().values
    ends = torch.tensor([score.numel() for score in scores]).cumsum(0)
    cuts = torch.searchsorted(places, ends).tolist()
    keys, start, begin = [], 0, 0
    for score, mask, cut in zip(scores, alive, cuts, strict=True):
        if begin < cut:
            at = (places[begin:cut] - start).to(score.device)
            taken = None if mask is None else mask.take(at)
            keys.append(reference.living_keys(score.take(at), taken))
        start, begin = start + score.numel(), cut
    return torch.cat(keys)


def _check_counts(
    counts: Tensor, keep: int, scores: Sequence[Tensor], alive: Alive, names: Sequence[str] | None
) -> None:
    """Raises unless the scores have an order and `keep` is one of their ranks."""
    if int(counts[-1]):
        for i, (score, mask) in enumerate(zip(scores, alive, strict=True)):
            finite = score.isfinite()
            bad = int((~finite if mask is None else ~finite & mask).count_nonzero())
            if bad:
                name = f"'{names[i]}'" if names is not None else f"scores[{i}]"
                raise RangeError(
                    f"select_threshold: {name} holds {bad} NaN or infinite of {score.numel()} "
                    f"scores; they have no order"
                )
    total = int(counts[:-1].sum())
    if not 1 <= keep <= total:
        raise ValueError(f"select_threshold: keep must be in 1..{total} (alive scores), got {keep}")


def _fake(
    scores: Sequence[Tensor], alive: Sequence[Tensor | None], low: int, shift: int, bits: int
) -> Tensor:
    op = "score_histogram"
    check_scores(op, scores, alive)
    if not 1 <= bits <= WIDE_BITS:
        raise ValueError(f"{op}: bits must be in 1..16, got {bits}")
    most = 8 * scores[0].element_size() - bits
    if not 0 <= shift <= most:
        raise ValueError(
            f"{op}: shift must be in 0..{most} for {bits} bits of {name_of(scores[0].dtype)}, "
            f"got {shift}"
        )
    if low % (1 << shift):
        raise ValueError(f"{op}: low must be a multiple of 2^shift = {1 << shift}, got {low}")
    return scores[0].new_empty([(1 << bits) + 3], dtype=torch.int64)


declare(
    "score_histogram(Tensor[] scores, Tensor?[] alive, int low, int shift, int bits) -> Tensor",
    fake=_fake,
    reference=reference.score_histogram,
)
