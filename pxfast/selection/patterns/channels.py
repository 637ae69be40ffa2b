"""Whole output channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pxfast.errors import MaskError
from pxfast.selection.patterns.layout import LayerPattern
from pxfast.selection.patterns.pattern import Units
from pxfast.selection.sums import row_sums


@dataclass(frozen=True)
class Channels(LayerPattern):
    """Output channels of linear layers and convolutions are kept or removed whole.

    The score of a channel is the sum of its weights' scores. ``density=`` is the fraction of the
    *channels* that are kept, ``round(density * channels)`` of them exactly, in the network or in
    each layer; `Masks.density` says how many weights that leaves. The outputs of the classifier are
    channels too: leave it out of the scores, by ``exclude=``, if all classes must stay.

    These are masks: a removed channel keeps its place, its bias and its BatchNorm. Layers whose
    outputs meet in an addition are not made to agree; cutting channels out of the network, which
    needs that, is left to Torch-Pruning.

    Args:
        transposed: See `LayerPattern`; ``Channels().of(model)`` fills it in.

    Example:
        >>> import pxfast, torch
        >>> scores = pxfast.Scores({"fc.weight": torch.tensor([[0.1, 0.3], [0.3, 0.2]])})
        >>> scores.masks(density=0.5, pattern=Channels())["fc.weight"]
        tensor([[False, False],
                [ True,  True]])
    """

    noun = "channels"

    def __str__(self) -> str:
        return "channels"

    def left_dense(self, scores: Mapping[str, Tensor]) -> dict[str, str]:
        """Returns the weights that are no matrices."""
        return {
            name: f"shape {list(score.shape)}" for name, score in scores.items() if score.dim() < 2
        }

    def units(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Units:
        """Returns one unit per output channel."""
        unit_scores, unit_alive = {}, {}
        for name, score in scores.items():
            if score.dim() < 2:
                continue
            if name in alive:
                unit_alive[name] = self.outputs_first(name, alive[name]).flatten(1).any(1)
                score = score.masked_fill(~alive[name], 0)
            unit_scores[name] = row_sums(self.outputs_first(name, score).flatten(1))
        if not unit_scores:
            raise MaskError("pattern=channels needs weights [O, C, …], and there are none")
        return Units(unit_scores, unit_alive)

    def spread(
        self, kept: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Returns masks whose rows are all 1 or all 0."""
        masks = {}
        for name, channels in kept.items():
            shape = self.outputs_first(name, scores[name]).shape
            rows = channels.view(-1, *[1] * (len(shape) - 1)).expand(shape)
            masks[name] = self.outputs_first(name, rows).contiguous()
        return masks
