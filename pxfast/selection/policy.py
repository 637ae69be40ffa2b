"""How scores become masks: what competes with what, in which groups, with which floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isclose
from typing import Any

import torch
from torch import Tensor

from pxfast.selection.budget import (
    Budget,
    budgets,
    check_fraction,
    check_scope,
    keep_highest,
    resolve_density,
    with_floors,
)
from pxfast.selection.patterns import Pattern, SingleWeights, Units


@dataclass(frozen=True)
class Policy:
    """The settings of a selection, whatever the scores and the density.

    Attributes:
        scope: "global": all layers compete; "layer": each layer keeps the same fraction.
        pattern: What is kept or removed as one.
        min_density: The least fraction that every layer keeps, or None.

    Raises:
        ValueError: If a setting is out of its range, or two of them contradict each other.
    """

    scope: str = "global"
    pattern: Pattern = field(default_factory=SingleWeights)
    min_density: float | None = None

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if self.min_density is None:
            return
        check_fraction("min_density", self.min_density)
        if self.scope == "layer" or self.pattern.density is not None:
            evenly = f"pattern={self.pattern}" if self.pattern.density else "scope='layer'"
            raise ValueError(
                f"min_density is for scope='global' with a pattern that lets layers differ: "
                f"{evenly} keeps the same fraction of every layer already"
            )

    def resolve(self, density: float | None, sparsity: float | None) -> float:
        """Returns the density that is asked for, or the pattern's own.

        Raises:
            ValueError: If it is out of its range or not the pattern's, or none or two are given.
            TypeError: If it is not a number.
        """
        fixed = self.pattern.density
        if fixed is None:
            return resolve_density(density, sparsity)
        if density is None and sparsity is None:
            return fixed
        if not isclose(asked := resolve_density(density, sparsity), fixed, rel_tol=1e-9):
            raise ValueError(
                f"pattern={self.pattern} keeps the fraction {fixed:g} of the weights, but "
                f"{asked:g} was asked for: leave density= and sparsity= out"
            )
        return fixed

    def over(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Selection:
        """Returns the selection among scores.

        Args:
            scores: Scores of the weights by name, in parameter order.
            alive: Bool masks of what was not removed before, by name; a missing name is wholly
                alive.
        """
        on_device = {
            name: alive[name].to(score.device) for name, score in scores.items() if name in alive
        }
        return Selection(self, scores, on_device)

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that are not the default, as JSON can hold them."""
        told: dict[str, Any] = {"scope": self.scope}
        if not isinstance(self.pattern, SingleWeights):
            told["pattern"] = str(self.pattern)
        if self.min_density is not None:
            told["min_density"] = self.min_density
        return told


@dataclass(frozen=True)
class Selection:
    """Scores under a policy, ready to be selected from.

    Attributes:
        policy: The settings.
        scores: Scores of the weights by name.
        alive: Bool masks of what was not removed before, on the scores' devices.
    """

    policy: Policy
    scores: Mapping[str, Tensor]
    alive: Mapping[str, Tensor]

    @cached_property
    def units(self) -> Units:
        """What competes."""
        units = self.policy.pattern.units(self.scores, self.alive)
        floor = self.policy.min_density
        return units if floor is None else with_floors(units, floor)

    @property
    def density(self) -> float:
        """Fraction of the units that was not removed before."""
        if not self.alive:
            return 1.0
        units = self.units
        total = sum(score.numel() for score in units.scores.values())
        return sum(map(units.count_alive, units.scores)) / total

    def check(self, density: float) -> None:
        """Raises a MaskError unless this density can be kept exactly."""
        for share in self._shares(density):
            share.check()

    def notes(self) -> list[str]:
        """Returns what the user must know of the layers that the pattern leaves as they are."""
        pattern = self.policy.pattern
        left = [f"{name} ({why})" for name, why in pattern.left_dense(self.scores).items()]
        return [f"pattern={pattern} does not fit, and leaves dense: {', '.join(left)}"] * bool(left)

    def masks(self, density: float) -> dict[str, Tensor]:
        """Keeps the highest scores.

        Returns:
            Bool masks of the weights by name, in the order of the scores.
        """
        kept = keep_highest(self.units, self._shares(density))
        if type(self.policy.pattern) is SingleWeights:  # then they are alive
            return kept
        masks = self.policy.pattern.spread(kept, self.scores)
        return {
            name: _alive_part(masks.get(name), self.alive.get(name), score)
            for name, score in self.scores.items()
        }

    def _shares(self, density: float) -> list[Budget]:
        if density not in self._budgets:  # each counts what is alive
            policy = self.policy
            self._budgets[density] = budgets(self.units, density, policy.scope, policy.pattern.noun)
        return self._budgets[density]

    @cached_property
    def _budgets(self) -> dict[float, list[Budget]]:
        return {}


def _alive_part(mask: Tensor | None, alive: Tensor | None, score: Tensor) -> Tensor:
    """Returns what a mask keeps of what is alive; a missing one is all ones."""
    if mask is None:
        return score.new_ones(score.shape, dtype=torch.bool) if alive is None else alive.clone()
    return mask if alive is None else mask & alive
