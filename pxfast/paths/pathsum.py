"""Path sums: non-negative tensors with one shared power-of-two exponent (docs/method.md, "Range").

A path sum is ``mantissa * 2**exponent``. The exponent is one number for the whole tensor, so
scaling by it changes no ratio inside; sums of several tensors align their exponents first.
Multiplying by a power of two is exact. On the CPU the exponent is a Python int; on an accelerator
it is a scalar tensor, so that no layer waits for the device.

The mantissa is *narrow*: a dimension along which the path sum is constant has size 1 there. With
weights of one, a linear layer gives every output the same path sum, so most of an unpruned network
is narrow and costs next to nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import accumulate, pairwise

import torch
from torch import Tensor

# A mantissa is rescaled when its largest entry leaves [2**-SLACK, 2**SLACK]. Products of one layer
# (fan-in times the square of a weight) then stay far inside float32's 2**±126, and most layers are
# not touched at all.
SLACK = 24
_LIMIT = {torch.float32: 126, torch.float64: 1022}  # 2**±limit is a normal number of the dtype

Exponent = int | Tensor


class PathSum:
    """``mantissa * 2**exponent``, the sum over all paths that reach each entry of a tensor.

    Attributes:
        mantissa: narrow tensor, broadcastable to the full shape; float32, or float64 for a float64
            model.
        exponent: int on the CPU, int32 scalar tensor elsewhere.
    """

    __slots__ = ("exponent", "mantissa")

    def __init__(self, mantissa: Tensor, exponent: Exponent = 0):
        self.mantissa = mantissa
        self.exponent = exponent

    @property
    def shape(self) -> torch.Size:
        """Of the mantissa: 1 where the path sum is constant."""
        return self.mantissa.shape

    def over_channels(self) -> Tensor:
        """The mantissa summed over dimension 1, which stays with size 1."""
        return self.mantissa.sum(1, keepdim=True)

    def map(self, linear: Callable[[Tensor], Tensor]) -> PathSum:
        """Apply a *linear* function to the mantissa; the exponent stays."""
        return PathSum(linear(self.mantissa), self.exponent)

    def summed(self, shape: Sequence[int]) -> PathSum:
        """The sum over all entries of the full shape, a scalar in float64."""
        repeats = math.prod(shape) / max(1, self.mantissa.numel())
        return self.map(lambda m: m.sum(dtype=torch.float64) * repeats)

    def times(self, factor: Tensor | float) -> PathSum:
        """Multiply by a squared gate or a squared constant, broadcast over the narrow
        dimensions."""
        return PathSum(self.mantissa * factor, self.exponent)

    def widened(self, shape: Sequence[int], dims: Iterable[int] | None = None) -> Tensor:
        """The mantissa expanded (no copy) to ``shape`` along ``dims`` (default: all of them)."""
        if dims is None:
            return self.mantissa.expand(tuple(shape))
        sizes = [-1] * len(shape)
        for dim in dims:
            sizes[dim] = shape[dim]
        return self.mantissa.expand(sizes)

    def reshaped(self, shape: Sequence[int], function: Callable[[Tensor], Tensor]) -> PathSum:
        """Apply a function that only moves entries around; constant dimensions that survive stay
        narrow."""
        return PathSum(narrow(function(self.widened(shape))), self.exponent)

    def normalised(self, *, inplace: bool = False) -> PathSum:
        """Bring the largest entry back near 1 if it has drifted far from it, counting in the
        exponent; in place where nobody else has the mantissa, which spares fresh memory."""
        if self.mantissa.is_meta or self.mantissa.numel() == 0:
            return self
        shift = drift(self.mantissa)
        if isinstance(shift, int) and shift == 0:
            return self
        factor = power_of_two(-shift)
        mantissa = self.mantissa.mul_(factor) if inplace else self.mantissa * factor
        return PathSum(mantissa, self.exponent + shift)

    def at_exponent(self, exponent: Exponent) -> Tensor:
        """The mantissa that goes with another (not smaller) exponent. What falls below the range
        becomes 0."""
        return (
            self.mantissa
            if self.mantissa.is_meta
            else shifted(self.mantissa, self.exponent - exponent)
        )

    def __add__(self, other: PathSum) -> PathSum:
        return total([self, other])


class Gated(PathSum):
    """A path sum behind an activation, of which only the sum over channels is known: all that an
    unpruned layer wants of it. Whoever reads the mantissa has it computed.

    Args:
        sums: the mantissa summed over dimension 1, [N, 1, ...].
        exponent: of both.
        shape: of the mantissa.
        whole: computes the mantissa.
    """

    __slots__ = ("_mantissa", "_shape", "_whole", "sums")

    def __init__(
        self, sums: Tensor, exponent: Exponent, shape: torch.Size, whole: Callable[[], Tensor]
    ):
        self.sums, self.exponent, self._shape, self._whole = sums, exponent, shape, whole
        self._mantissa: Tensor | None = None

    @property
    def mantissa(self) -> Tensor:  # type: ignore[override]
        """All of it."""
        if self._mantissa is None:
            self._mantissa = self._whole()
            del self._whole  # and what it holds
        return self._mantissa

    @property
    def shape(self) -> torch.Size:
        """Of the mantissa."""
        return self._shape

    def over_channels(self) -> Tensor:
        """The sums."""
        return self.sums


class Runs(PathSum):
    """A path sum of which neighbours along one dimension are equal: in g a class token, then all
    patch tokens, or the rows of a map that see no padding. What is done to every entry alike is
    done once for each run; whoever reads the mantissa has it written out.

    Args:
        once: the path sum with one entry along ``dim`` for each run.
        dim: the dimension, counted from the first.
        lengths: of the runs.
    """

    __slots__ = ("_mantissa", "dim", "lengths", "once")

    def __init__(self, once: PathSum, dim: int, lengths: Sequence[int]):
        self.once, self.dim, self.lengths = once, dim, tuple(lengths)
        self.exponent = once.exponent
        self._mantissa: Tensor | None = None

    @property
    def mantissa(self) -> Tensor:  # type: ignore[override]
        """Every entry."""
        if self._mantissa is None:
            self._mantissa = repeated(self.once.mantissa, self.dim, self.lengths)
        return self._mantissa

    @property
    def shape(self) -> torch.Size:
        """Of the mantissa."""
        sizes = list(self.once.shape)
        sizes[self.dim] = sum(self.lengths)
        return torch.Size(sizes)

    def through(self, function: Callable[[PathSum], PathSum]) -> PathSum:
        """Apply what treats every entry along ``dim`` alike, and by itself."""
        return Runs(function(self.once), self.dim, self.lengths)

    def cut(self, ends: Sequence[int]) -> Runs:
        """The same in more runs; ``ends`` says where they end, those of its own among them."""
        own = list(accumulate(self.lengths))
        counts = [bisect_right(ends, end) for end in own]
        counts = [count - before for before, count in pairwise([0, *counts])]
        lengths = [end - before for before, end in pairwise([0, *ends])]
        return Runs(_each(self.once, self.dim, counts), self.dim, lengths)

    def summed(self, shape: Sequence[int]) -> PathSum:
        """As of any path sum."""
        rest = [1 if dim == self.dim else size for dim, size in enumerate(shape)]
        runs = zip(self.once.mantissa.split(1, self.dim), self.lengths, strict=True)
        sums = [PathSum(entry, self.exponent).summed(rest).times(length) for entry, length in runs]
        return total(sums)

    def times(self, factor: Tensor | float) -> PathSum:
        """As of any path sum."""
        along = self.dim - len(self.shape)
        if isinstance(factor, Tensor) and factor.dim() >= -along and factor.shape[along] != 1:
            return super().times(factor)
        return self.through(lambda once: once.times(factor))

    def normalised(self, *, inplace: bool = False) -> PathSum:
        """As of any path sum."""
        return self.through(lambda once: once.normalised(inplace=inplace))


def repeated(entries: Tensor, dim: int, counts: Sequence[int]) -> Tensor:
    """Every entry along a dimension as often as ``counts`` says, one after the other."""
    pieces, begin = [], 0
    for i, count in enumerate(counts):
        if count != 1:
            pieces += [entries.narrow(dim, begin, i - begin)] if i > begin else []
            sizes = [-1] * entries.dim()
            sizes[dim] = count
            pieces.append(entries.narrow(dim, i, 1).expand(sizes))
            begin = i + 1
    if begin < len(counts):
        pieces.append(entries.narrow(dim, begin, len(counts) - begin))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _each(path: PathSum, dim: int, counts: Sequence[int]) -> PathSum:
    """`repeated`, of a path sum that may have runs along other dimensions."""
    if isinstance(path, Runs):
        return path.through(lambda once: _each(once, dim, counts))
    return path.map(lambda m: repeated(m, dim, counts))


def total(terms: Sequence[PathSum]) -> PathSum:
    """Sum of path sums, exponents aligned to the largest; narrow where all terms are, and in runs
    where all have them."""
    for like in terms:
        if isinstance(like, Runs) and all(_goes_with(term, like) for term in terms):
            runs = [term for term in terms if isinstance(term, Runs)]
            ends = sorted({end for term in runs for end in accumulate(term.lengths)})
            once = [term.cut(ends).once if isinstance(term, Runs) else term for term in terms]
            return Runs(total(once), like.dim, like.cut(ends).lengths)
    exponent, mantissas = aligned(terms)
    return PathSum(reduce(torch.add, mantissas), exponent)


def _goes_with(term: PathSum, like: Runs) -> bool:
    if isinstance(term, Runs):
        return term.dim == like.dim and term.shape[like.dim] == like.shape[like.dim]
    return len(term.shape) == len(like.shape) and term.shape[like.dim] == 1


def aligned(terms: Sequence[PathSum]) -> tuple[Exponent, list[Tensor]]:
    """One exponent for all terms (the largest among those that are not 0), and the mantissas that
    go with it."""
    exponents = [term.exponent for term in terms]
    if all(isinstance(exponent, int) for exponent in exponents):
        largest = max(exponents)
        if largest - min(exponents) <= CLOSE:  # then none drowns, empty or not
            return largest, [term.at_exponent(largest) for term in terms]
    largest = reduce(larger, [_exponent_unless_zero(term) for term in terms])
    return largest, [term.at_exponent(largest) for term in terms]


CLOSE = 60  # binary orders that a mantissa near 2**±SLACK may lose and stay a normal number
LOWEST = -(2**30)  # the exponent of a sum of 0: an empty branch must not drown the others


def _exponent_unless_zero(term: PathSum) -> Exponent:
    if term.mantissa.is_meta or term.mantissa.numel() == 0:
        return term.exponent
    largest = term.mantissa.detach().amax()
    if isinstance(term.exponent, int) and largest.device.type == "cpu":
        return LOWEST if largest == 0 else term.exponent
    return torch.where(largest == 0, LOWEST, term.exponent)


def larger(a: Exponent, b: Exponent) -> Exponent:
    """The larger of two exponents."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))


def narrow(mantissa: Tensor) -> Tensor:
    """Cut every expanded (stride-0) dimension to size 1."""
    for dim, (size, stride) in enumerate(zip(mantissa.shape, mantissa.stride(), strict=True)):
        if stride == 0 and size > 1:
            mantissa = mantissa.narrow(dim, 0, 1)
    return mantissa


def drift(mantissa: Tensor) -> Exponent:
    """Binary exponent of the largest entry if it lies outside ``2**±SLACK``, else 0. An eighth of
    the samples tells it: their sizes differ far less than SLACK, but for samples of zeros."""
    limit = _LIMIT[mantissa.dtype]
    mantissa = mantissa.detach()
    eighth = -(-mantissa.shape[0] // 8) if mantissa.dim() else 1
    if mantissa.device.type == "cpu":  # where neighbours are read fastest, and 0 can be looked at
        value = float((mantissa[:eighth] if mantissa.dim() else mantissa).amax())
        value = value or float(mantissa.amax())
        exponent = math.frexp(value)[1] if math.isfinite(value) else 0
        return max(-limit, min(limit, exponent)) if abs(exponent) > SLACK else 0
    largest = (mantissa[::eighth] if mantissa.dim() else mantissa).amax()
    exponent = torch.frexp(largest).exponent
    far = (exponent.abs() > SLACK) & torch.isfinite(largest)
    return torch.where(far, exponent, 0).clamp(-limit, limit)


def shifted(mantissa: Tensor, shift: Exponent) -> Tensor:
    """``mantissa * 2**shift`` for a shift of any size: exact, or 0 below the range."""
    limit = _LIMIT[mantissa.dtype]
    if isinstance(shift, int):
        shift = max(-2 * limit, min(2 * limit, shift))
        half = max(-limit, min(limit, shift))
        if shift == half:
            return mantissa if shift == 0 else mantissa * power_of_two(shift)
    else:
        half = shift.clamp(-limit, limit)
        shift = shift.clamp(-2 * limit, 2 * limit)
    return mantissa * power_of_two(half) * power_of_two(shift - half)


def power_of_two(exponent: Exponent) -> float | Tensor:
    """``2**exponent`` exactly, for exponents inside the normal range."""
    return 2.0**exponent if isinstance(exponent, int) else torch.exp2(exponent.to(torch.float64))
