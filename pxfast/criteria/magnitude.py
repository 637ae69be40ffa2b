"""Magnitude pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from pxfast.criteria.functional import functional
from pxfast.preparation import Choice
from pxfast.selection.scores import Scores


@dataclass(frozen=True)
class Magnitude:
    """The size of a weight: S_j = |θ_j|.

    With ``scope="layer"`` this is layerwise magnitude pruning. The data are not looked at and the
    model does not run, so weights that the output never uses are scored like all others.

    Source: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural
    Networks", NeurIPS 2015, arXiv 1506.02626.
    """

    name: ClassVar[str] = "magnitude"
    rounds: ClassVar[int] = 1

    def score(
        self,
        model: nn.Module,
        data: Any = None,
        *,
        masks: Mapping[str, Tensor] | None = None,
        include: Choice = None,
        exclude: Choice = None,
    ) -> Scores:
        """Scores every prunable weight; see `Criterion`."""
        with functional(model, data, masks, include, exclude) as network:
            scores = {name: network.weights[name].abs() for name in network.scored}
            return network.scores(scores, self.name)
