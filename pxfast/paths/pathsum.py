"""Path sums: non-negative tensors with one shared power-of-two exponent (docs/method.md, "Range").

A path sum is ``mantissa * 2**exponent``. The exponent is one number for the whole tensor, so scaling by it changes
no ratio inside; sums of several tensors align their exponents first. Multiplying by a power of two is exact.

The mantissa is *narrow*: a dimension along which the path sum is constant has size 1 there. With weights of one,
a linear layer gives every output the same path sum, so most of an unpruned network is narrow and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

# A mantissa is rescaled when its largest entry leaves [2**-SLACK, 2**SLACK]. Products of one layer (fan-in times the
# square of a weight) then stay far inside float32's 2**±126, and most layers are not touched at all.
SLACK = 24
_LIMIT = {
    torch.float32: 126,
    torch.float64: 1022,
}  # 2**±limit is a normal number of the dtype


class PathSum:
    """``mantissa * 2**exponent``, the sum over all paths that reach each entry of a tensor.

    Attributes:
        mantissa: narrow tensor, broadcastable to the full shape; float32, or float64 for a float64 model.
        exponent: int32 scalar tensor.
    """

    __slots__ = ("exponent", "mantissa")

    def __init__(self, mantissa: Tensor, exponent: Tensor | None = None):
        self.mantissa = mantissa
        self.exponent = (
            torch.zeros((), dtype=torch.int32, device=mantissa.device)
            if exponent is None
            else exponent
        )

    def map(self, linear: Callable[[Tensor], Tensor]) -> PathSum:
        """Apply a *linear* function to the mantissa; the exponent stays."""
        return PathSum(linear(self.mantissa), self.exponent)

    def times(self, factor: Tensor | float) -> PathSum:
        """Multiply by a squared gate or a squared constant, broadcast over the narrow dimensions."""
        return PathSum(self.mantissa * factor, self.exponent)

    def widened(
        self, shape: Sequence[int], dims: Iterable[int] | None = None
    ) -> Tensor:
        """The mantissa expanded (no copy) to ``shape`` along ``dims`` (default: all of them)."""
        if dims is None:
            return self.mantissa.expand(tuple(shape))
        sizes = [-1] * len(shape)
        for dim in dims:
            sizes[dim] = shape[dim]
        return self.mantissa.expand(sizes)

    def reshaped(
        self, shape: Sequence[int], function: Callable[[Tensor], Tensor]
    ) -> PathSum:
        """Apply a function that only moves entries around; constant dimensions that survive stay narrow."""
        return PathSum(narrow(function(self.widened(shape))), self.exponent)

    def normalised(self) -> PathSum:
        """Bring the largest entry back near 1 if it has drifted far from it, counting in the exponent."""
        mantissa = self.mantissa
        if mantissa.is_meta or mantissa.numel() == 0:
            return self
        shift = drift(mantissa)
        if (
            mantissa.device.type == "cpu" and not shift
        ):  # reading it costs nothing there
            return self
        return PathSum(
            mantissa * power_of_two(-shift, mantissa.dtype), self.exponent + shift
        )

    def at_exponent(self, exponent: Tensor) -> Tensor:
        """The mantissa that goes with another (not smaller) exponent. What falls below the range becomes 0."""
        if self.mantissa.is_meta:
            return self.mantissa
        shift = self.exponent - exponent
        if shift.device.type == "cpu" and not shift:
            return self.mantissa
        return shifted(self.mantissa, shift)

    def __add__(self, other: PathSum) -> PathSum:
        return total([self, other])


def total(terms: Sequence[PathSum]) -> PathSum:
    """Sum of path sums, exponents aligned to the largest; narrow where all terms are."""
    exponent, mantissas = aligned(terms)
    return PathSum(reduce(torch.add, mantissas), exponent)


def aligned(terms: Sequence[PathSum]) -> tuple[Tensor, list[Tensor]]:
    """One exponent for all terms (the largest among those that are not 0), and the mantissas that go with it."""
    exponents = [term.exponent for term in terms]
    on_cpu = all(exponent.device.type == "cpu" for exponent in exponents)
    if on_cpu and all(int(exponent) == int(exponents[0]) for exponent in exponents):
        return exponents[0], [term.mantissa for term in terms]
    largest = reduce(torch.maximum, [_exponent_if_not_empty(term) for term in terms])
    exponent = torch.where(largest == NOTHING, exponents[0], largest)
    return exponent, [term.at_exponent(exponent) for term in terms]


NOTHING = -(
    2**30
)  # the exponent of a sum of 0: an empty branch must not drown the others


def _exponent_if_not_empty(term: PathSum) -> Tensor:
    if term.mantissa.is_meta or term.mantissa.numel() == 0:
        return term.exponent
    empty = term.mantissa.detach().amax() == 0
    return torch.where(empty, torch.full_like(term.exponent, NOTHING), term.exponent)


def narrow(mantissa: Tensor) -> Tensor:
    """Cut every expanded (stride-0) dimension to size 1."""
    for dim, (size, stride) in enumerate(
        zip(mantissa.shape, mantissa.stride(), strict=True)
    ):
        if stride == 0 and size > 1:
            mantissa = mantissa.narrow(dim, 0, 1)
    return mantissa


def drift(mantissa: Tensor) -> Tensor:
    """Binary exponent of the largest entry if it lies outside ``2**±SLACK``, else 0 (int32 scalar, no sync)."""
    largest = mantissa.detach().amax()
    exponent = torch.frexp(largest).exponent.to(torch.int32)
    far = (exponent.abs() > SLACK) & torch.isfinite(largest) & (largest > 0)
    limit = _LIMIT[mantissa.dtype]
    return torch.where(far, exponent, torch.zeros_like(exponent)).clamp(-limit, limit)


def shifted(mantissa: Tensor, shift: Tensor) -> Tensor:
    """``mantissa * 2**shift`` for a shift of any size: exact, or 0 below the range."""
    limit = _LIMIT[mantissa.dtype]
    first = shift.clamp(-limit, limit)
    second = (shift - first).clamp(-limit, limit)
    return (
        mantissa
        * power_of_two(first, mantissa.dtype)
        * power_of_two(second, mantissa.dtype)
    )


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """``2**exponent`` exactly, for exponents inside the dtype's normal range."""
    return torch.ldexp(torch.ones((), dtype=dtype, device=exponent.device), exponent)
