"""What a pattern is, and the one without any: single weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class Units:
    """What is kept or removed as one: single weights, or groups of them.

    Attributes:
        scores: Score of every unit, one tensor per layer.
        alive: Bool tensors, by layer: which units may be kept. A missing name: all.
        reserved: Bool tensors, by layer: which units are kept before all others, whatever their
            scores. A missing name: none.
    """

    scores: Mapping[str, Tensor]
    alive: Mapping[str, Tensor]
    reserved: Mapping[str, Tensor] = field(default_factory=dict)

    def count_alive(self, name: str) -> int:
        """Returns the number of units of a layer that may be kept."""
        alive = self.alive.get(name)
        return self.scores[name].numel() if alive is None else int(alive.count_nonzero())

    def count_reserved(self, name: str) -> int:
        """Returns the number of units of a layer that must be kept."""
        reserved = self.reserved.get(name)
        return 0 if reserved is None else int(reserved.count_nonzero())


class Pattern(ABC):
    """Which weights are kept or removed as one, and which of them must be kept.

    Attributes:
        noun: What the units are called in messages.
        density: The fraction of the units that the pattern keeps by itself; None if it keeps
            whatever fraction is asked for.
    """

    noun: ClassVar[str]
    density: float | None = None

    def of(self, model: nn.Module) -> Pattern:
        """Returns the pattern with what it must know of a model; `pxfast.prune` calls it."""
        del model
        return self

    def left_dense(self, scores: Mapping[str, Tensor]) -> dict[str, str]:
        """Returns the layers that the pattern does not fit, by name, and why."""
        del scores
        return {}

    @abstractmethod
    def units(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Units:
        """Groups the weights.

        Args:
            scores: Scores of the weights by name.
            alive: Bool tensors of the same shapes: which weights were not removed before. A missing
                name: all.

        Raises:
            MaskError: If there are no units.
        """

    @abstractmethod
    def spread(
        self, kept: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Gives every weight the mask of its unit.

        Args:
            kept: Bool tensors of the units' shapes, by the names that `units` gave.
            scores: Scores of the weights by name.

        Returns:
            Bool masks of the weights' shapes by name. Layers without a mask stay as they are.
        """


class SingleWeights(Pattern):
    """No pattern: every weight is a unit."""

    noun = "weights"

    def units(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Units:
        """Returns the weights themselves."""
        return Units(scores, alive)

    def spread(
        self, kept: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Returns the masks themselves."""
        del scores
        return kept

    def __repr__(self) -> str:
        return "SingleWeights()"
