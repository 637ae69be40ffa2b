"""One use of a weight by a linear operation: its values, its mask, what both make, its scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from pxfast import ops
from pxfast.paths.select import all_set, any_along, ones, selected
from pxfast.paths.sources import Source

if TYPE_CHECKING:
    from pxfast.paths.weights import Weights

Purpose = Literal["scores", "bound", "existence", "structure"]


class Saliency(NamedTuple):
    """Where the scores S of a weight accumulate.

    Attributes:
        tensor: of the shape that the operation sees.
        new: nothing has been written to it yet, so that it is not to be read.
    """

    tensor: Tensor
    new: bool

    def add(self, scores: Tensor) -> None:
        """S += scores."""
        if self.new:
            self.tensor.copy_(scores)
        else:
            self.tensor.add_(scores.to(self.tensor.device))


@dataclass
class Weight:
    """One use of a weight by a linear operation. All tensors have the shape that the operation
    sees.

    Attributes:
        weights: the model's weights, where scores accumulate.
        source: the parameter behind it, or None for a constant (a buffer, a fixed kernel).
        theta: the values θ, masks not applied.
        mask: 0/1 tensor M, or None where every weight is kept.
        memory: what is made of θ and M stays here for the parts of a batch that are still to come.
    """

    weights: Weights
    source: Source | None
    theta: Tensor
    mask: Tensor | None
    is_transposed: bool = False
    memory: dict[str, Tensor] | None = None

    @property
    def value_rows(self) -> Tensor | None:
        """Where the structure pass notes the weights that value paths leave (weights.side)."""
        return None if self.source is None else self._seen(self.weights.value_buffer(self.source))

    def note_value_rows(self, rows: Tensor) -> None:
        """Note rows that value paths leave, in the structure pass; ``rows`` broadcasts to the
        weight."""
        if self.source is not None:
            self.weights.note_value_rows(self.source, rows.T if self.is_transposed else rows)

    def _seen(self, buffer: Tensor | None) -> Tensor | None:
        if buffer is None or self.source is None:
            return None
        buffer = self.source.seen(buffer)
        return buffer.T if self.is_transposed else buffer

    def transposed(self) -> Weight:
        """The same weight with its two dimensions swapped; scores go to the same buffer."""
        return replace(
            self,
            theta=self.theta.T,
            mask=None if self.mask is None else self.mask.T,
            is_transposed=not self.is_transposed,
            memory=None,
        )

    def resting(self) -> Weight:
        """Without θ, for a backward to come, where `loaded` can get it again; else itself."""
        source = self.source
        if source is None or not source.is_offloaded:
            return self
        return replace(self, source=without_theta(source), theta=self.theta.to("meta"))

    def loaded(self) -> Weight:
        """With θ again."""
        source = self.source
        if source is None or not source.theta.is_meta or source.name not in self.weights.offloaded:
            return self
        theta = source.seen(self.weights.offloaded.load(source.name))
        return replace(self, theta=theta.T if self.is_transposed else theta)

    def wants_scores(self) -> bool:
        """Whether the backward that runs now, and has come here, is to accumulate scores."""
        return self.source is not None and self.weights.wants_scores(self.source)

    @contextlib.contextmanager
    def scores(self, device: torch.device, rows: slice | None = None) -> Iterator[Saliency]:
        """Where S accumulates, in some rows or all, on a device. Scores of offloaded weights stay
        on the CPU."""
        assert self.source is not None
        buffer, new = self.weights.buffer(self.source)
        own = self._seen(buffer)
        assert own is not None
        if rows is not None:
            if new:
                own[: rows.start] = own[rows.stop :] = 0
            own = own[rows]
        if own.device == device:
            yield Saliency(own, new)
            return
        here = Saliency(torch.empty_like(own, device=device), True)
        yield here
        Saliency(own, new).add(here.tensor)

    def keep_scores(self, scores: Tensor) -> None:
        """Add to S, or let a new tensor be S where that is possible, which spares memory."""
        assert self.source is not None
        buffers, name, theta = self.weights.buffers, self.source.name, self.source.theta
        whole = not (self.source.views or self.source.is_offloaded or self.is_transposed)
        alike = scores.stride() == theta.stride() and scores.device == theta.device
        alike = alike and scores.dtype == self.weights.dtype
        if whole and alike and name not in buffers:
            buffers[name] = scores
            return
        with self.scores(scores.device) as saliency:
            saliency.add(scores)

    def leave_spare(self) -> None:
        """Give up the memory that is spare for the scores: a gradient that is about to be made, and
        to become the scores, will have it."""
        if self.source is not None and self.weights.side is None:
            self.weights.spare.pop(self.source.name, None)

    def count_use(self, count: int) -> None:
        """Count a use of a weight, or one less where all of its input lies on value paths."""
        if self.source is not None:
            outside = self.weights.outside
            outside[self.source.name] = outside.get(self.source.name, 0) + count

    def ends_side_branch(self) -> bool:
        """Whether the backward of a side branch, which runs now, ends at this layer: all its input
        lies on value paths, so that no side row is behind it."""
        if self.weights.side is None or self.source is None:
            return False
        return self.weights.outside.get(self.source.name) == 0

    def has_side_rows(self) -> bool:
        """Whether value paths leave some row out."""
        rows = self.value_rows
        return rows is not None and not all_set(rows)

    def rows(self, rows: slice) -> Weight:
        """Some rows of a matrix, for a computation that leaves the others alone."""
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, theta=self.theta[rows], mask=mask, memory=None)

    def masked(self) -> Tensor:
        """θ·M, what the true network uses. A masked weight is 0 whatever θ holds there."""
        mask = self.mask
        if mask is None:
            return self.theta
        return self._once("θ·M", lambda: selected(self.theta, mask))

    def masked_rows(self, begin: int, end: int) -> Tensor:
        """Some rows of θ·M."""
        theta = self.theta[begin:end]
        return theta if self.mask is None else selected(theta, self.mask[begin:end])

    def mask_rows(self, begin: int, end: int) -> Tensor:
        """Some rows of M, in the dtype of path sums."""
        assert self.mask is not None
        return ones(self.mask[begin:end], self.weights.dtype)

    def squared(self, dtype: torch.dtype) -> Tensor:
        """θ²·M in the dtype of path sums; 1 in the structure pass, 0 or 1 in the existence pass."""
        if self.weights.purpose == "structure":
            return torch.ones_like(self.theta, dtype=dtype)
        if self.weights.purpose == "existence":
            return (self.masked() != 0).to(dtype)
        masked = self.masked().to(dtype)
        if self.mask is None or self.memory is not None:  # then others use it, too
            return masked.square()
        return masked.square_()

    def factor(self, squared: Tensor) -> Tensor:
        """What ∂R/∂(θ²·M) is multiplied by: θ²·M for scores, M for the bound of the trace."""
        if self.weights.purpose != "bound":
            return squared
        return torch.ones_like(squared) if self.mask is None else ones(self.mask, squared.dtype)

    def ones(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """M in the dtype of path sums, made anew for each use: 4 bytes a weight are not kept."""
        assert self.mask is not None
        return ones(self.mask.to("meta") if device.type == "meta" else self.mask, dtype)

    def bits(self) -> Tensor:
        """M, a bit a weight, as ops.masked_ones_linear and ops.masked_ones_conv2d take it."""
        mask = self.mask
        assert mask is not None
        return self._once("M", lambda: ops.pack_ones(mask))

    def density(self) -> float:
        """The share of the weight that is kept."""
        mask = self.mask
        if mask is None or mask.numel() == 0:
            return 1.0
        return float(self._once("kept", mask.count_nonzero)) / mask.numel()

    def channels(self) -> tuple[Tensor, Tensor] | None:
        """The inputs and outputs of a convolution (not transposed, groups = 1) that have a weight,
        where leaving out the others saves a quarter of the work: below some percent it does.
        """
        mask = self.mask
        if mask is None:
            return None
        window = range(2, mask.dim())
        inputs = self._once("inputs", lambda: _positions(any_along(mask, (0, *window))))
        outputs = self._once("outputs", lambda: _positions(any_along(mask, (1, *window))))
        worth = 4 * inputs.numel() * outputs.numel() <= 3 * mask.shape[0] * mask.shape[1]
        return (inputs, outputs) if worth else None

    def _once(self, what: str, make: Callable[[], Tensor]) -> Tensor:
        if self.memory is None:
            return make()
        if what not in self.memory:
            self.memory[what] = make()
        return self.memory[what]


def without_theta(source: Source) -> Source:
    """The source of an offloaded weight, which lets go of its values; others as they are."""
    return replace(source, theta=source.theta.to("meta")) if source.is_offloaded else source


def _positions(flags: Tensor) -> Tensor:
    return flags.nonzero().squeeze(1)
