"""Random scores: the floor that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pxfast.criteria.functional import functional
from pxfast.preparation import Choice
from pxfast.selection.scores import Scores


@dataclass(frozen=True)
class Random:
    """Uniform random scores: S_j ~ U[0, 1), the same in every round and on every device.

    The data and the model's values are not looked at, so weights that the output never uses are
    scored like all others.

    Args:
        seed: Of the numbers, which come from a generator of their own.
    """

    name: ClassVar[str] = "random"
    rounds: ClassVar[int] = 1
    seed: int = 0

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
        generator = torch.Generator().manual_seed(self.seed)
        with functional(model, data, masks, include, exclude) as network:
            numbers = {
                name: torch.rand(network.weights[name].shape, generator=generator)
                for name in network.scored
            }
            scores = {name: number.to(network.device) for name, number in numbers.items()}
            return network.scores(scores, self.name, seed=self.seed)
