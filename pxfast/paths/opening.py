"""What opens a gate: the path sums at the input of its activation (docs/method.md, "Side
branches").

An activation that turns out to be a gate has an `Opening`: the path sums that enter it, entry by
entry, or for attention those behind the queries and the keys. Their sum is the ℓ of the gate's side
branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pxfast.paths.pathsum import PathSum, narrow
from pxfast.paths.rearranged import Move

Shape = tuple[int, ...]

# An attention entry is forbidden if its mask lies this far, or further, below its row's maximum.
FORBIDDEN = 50.0


@dataclass(frozen=True)
class Entries:
    """Path sums, entry by entry of a tensor of the given shape."""

    path: PathSum
    shape: Shape

    def total(self) -> PathSum:
        """Their sum, a scalar in float64."""
        return self.path.summed(self.shape)

    def entries(self) -> Entries:
        """Themselves."""
        return self

    def over(self, allowed: Tensor) -> PathSum:
        """Their sum over the allowed entries."""
        return self.path.map(lambda m: (m.double() * allowed).expand(self.shape).sum())

    def moved(self, move: Move, shape: Shape) -> Entries:
        """The same path sums where a movement of entries takes them, to a tensor of that shape."""
        return Entries(self.path.map(lambda m: move(m, self.shape)), shape)


@dataclass(frozen=True)
class Dots:
    """Σ_c x_ic y_cj, for path sums x [..., T, C] and y [..., C, S]: those behind q kᵀ."""

    x: Entries
    y: Entries

    @property
    def shape(self) -> Shape:
        """[..., T, S]."""
        lead = torch.broadcast_shapes(self.x.shape[:-2], self.y.shape[:-2])
        return (*lead, self.x.shape[-2], self.y.shape[-1])

    def total(self) -> PathSum:
        """Σ_ij Σ_c x_ic y_cj = Σ_c (Σ_i x_ic)(Σ_j y_cj), so no [T, S] is formed."""
        rows = _summed(self.x, -2).mT  # [..., C, 1]
        columns = _summed(self.y, -1)
        shape = (*self.shape[:-2], self.x.shape[-1], 1)
        return self._sum(rows * columns, shape)

    def over(self, allowed: Tensor) -> PathSum:
        """Σ over the allowed (i, j), as Σ_c (allowedᵀ x)_jc y_cj."""
        dims = len(self.shape)
        x, y, counts = (_with_dims(tensor.double(), dims) for tensor in (
            self.x.path.mantissa, self.y.path.mantissa, allowed
        ))  # fmt: skip
        for dim in range(dims):  # what both factors are constant in is counted
            others = [x.shape[dim]] * (dim != dims - 1) + [y.shape[dim]] * (dim != dims - 2)
            if all(size == 1 for size in others):
                repeats = self.shape[dim] if counts.shape[dim] == 1 else 1
                counts = counts.sum(dim, keepdim=True) * repeats
        counts = counts.expand(*counts.shape[:-2], x.shape[-2], counts.shape[-1])
        terms = (x.mT @ counts) * y
        channels = self.x.shape[-1] if terms.shape[-2] == 1 else 1
        return self._at(terms.sum() * channels)

    def entries(self) -> Entries:
        """All of them, [..., T, S]."""
        x, y = self.x.path, self.y.path
        if x.mantissa.shape[-1] == y.mantissa.shape[-2] == 1:
            return Entries(self._at(x.mantissa * y.mantissa * self.x.shape[-1]), self.shape)
        wide = [
            x.mantissa.expand(*x.mantissa.shape[:-1], self.x.shape[-1]),
            y.mantissa.expand(*y.mantissa.shape[:-2], self.y.shape[-2], -1),
        ]
        return Entries(self._at(wide[0] @ wide[1]), self.shape)

    def _sum(self, terms: Tensor, shape: Shape) -> PathSum:
        return self._at(_repeated(terms.sum(), terms, shape))

    def _at(self, mantissa: Tensor) -> PathSum:
        return PathSum(mantissa, self.x.path.exponent + self.y.path.exponent)


@dataclass(frozen=True)
class Opening:
    """What a gate came out of.

    Attributes:
        activation: its name, or None for attention logits, which nothing has opened yet; "exp" for
            exponentials of logits, which are a softmax once they are divided by their sum.
        entering: the path sums at its input.
        attention: whether that is a product of queries and keys, or was made of one.
        moves: of logits, the movements of entries since their product, and the shapes after them.
        masks: of logits, the sum of the fixed parts of masks, narrow, where they lie now.
        allowed: of a softmax, whether an entry of its input was allowed; None where all were.
        mean: of a softmax, what stands for the probabilities in g, narrow, where they lie now:
            the same for all allowed entries of a row.
    """

    activation: str | None
    entering: Entries | Dots
    attention: bool = False
    moves: tuple[tuple[Move, Shape], ...] = ()
    masks: Tensor | None = None
    allowed: Tensor | None = None
    mean: Tensor | None = None

    def ell(self) -> PathSum:
        """ℓ, the sum of all path sums at allowed entries."""
        if self.allowed is None:
            return self.entering.total()
        if not self.moves:
            return self.entering.over(self.allowed)
        return self.here().over(self.allowed)

    def here(self) -> Entries:
        """The path sums of logits, entry by entry, where these lie now."""
        entries = self.entering.entries()
        for move in self.moves:
            entries = entries.moved(*move)
        return entries

    def moved(self, shape: torch.Size, move: Move, after: torch.Size) -> Opening:
        """What goes with the gate after a movement of its entries; ``shape`` is that before."""

        def follow(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else move(narrow(_with_dims(tensor, len(shape))), shape)

        moves = self.moves
        if self.activation in (None, "exp"):
            moves = (*moves, (move, tuple(after)))
        return replace(self, moves=moves, masks=follow(self.masks), mean=follow(self.mean))

    def masked(self, fixed: Tensor) -> Opening:
        """Logits under the fixed part of another mask, which is added to them."""
        masks = fixed if self.masks is None else self.masks + fixed
        return replace(self, masks=masks)

    def softmax(self, shape: torch.Size, dim: int, like: Tensor) -> Opening:
        """The opening of their softmax; ``like`` lends dtype and device to the mean."""
        count = like.new_ones([1] * len(shape)) * shape[dim]
        allowed = None if self.masks is None else allowed_entries(self.masks.expand(shape), dim)
        if allowed is not None:
            count = allowed.sum(dim, keepdim=True, dtype=like.dtype).clamp(min=1)
        mean = 1 / count if allowed is None else allowed / count
        return replace(self, activation="softmax", masks=None, allowed=allowed, mean=mean)


def allowed_entries(masks: Tensor, dim: int) -> Tensor | None:
    """Where a mask, added to logits, leaves a chance to an entry; None where it does everywhere."""
    allowed = masks > masks.amax(dim, keepdim=True) - FORBIDDEN
    return None if bool(allowed.all()) else narrow(allowed)


def _summed(entries: Entries, dim: int) -> Tensor:
    """Mantissas summed over a dimension, kept with size 1, in float64."""
    mantissa = entries.path.mantissa
    repeats = entries.shape[dim] if mantissa.shape[dim] == 1 else 1
    return mantissa.sum(dim, keepdim=True, dtype=torch.float64) * repeats


def _with_dims(tensor: Tensor, dims: int) -> Tensor:
    return tensor[(None,) * (dims - tensor.dim())]


def _repeated(total: Tensor, narrow: Tensor, shape: Shape) -> Tensor:
    """The sum over a narrow tensor, for one of the full shape."""
    return total * (math.prod(shape) / max(1, narrow.numel()))
