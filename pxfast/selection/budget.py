"""How many weights stay, and in which layers they compete."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pxfast.errors import MaskError
from pxfast.ops import select_threshold, write_masks
from pxfast.selection.patterns import Units

SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Budget:
    """The layers that compete for one number of kept weights, or of other units.

    Attributes:
        names: Names of the layers, in parameter order.
        density: Fraction of the units that is to be kept.
        total: Number of units.
        alive: Number of units that may be kept.
        reserved: Number of units that must be kept.
        noun: What the units are called.
    """

    names: tuple[str, ...]
    density: float
    total: int
    alive: int
    reserved: int = 0
    noun: str = "weights"

    @property
    def keep(self) -> int:
        """Number of units to keep: round(density · total)."""
        return round(self.density * self.total)

    def check(self) -> None:
        """Raises a MaskError unless the number can be kept exactly."""
        where = f"'{self.names[0]}'" if len(self.names) == 1 else f"{len(self.names)} layers"
        asked = f"density {self.density:g} of the {self.total} {self.noun} in {where}"
        if self.keep < 1:
            raise MaskError(
                f"{asked} rounds to no {self.noun[:-1]} at all. Raise the density"
                + (", or exclude the layer" if len(self.names) == 1 else "")
            )
        if self.keep > self.alive:
            raise MaskError(
                f"{asked} is {self.keep} {self.noun}, but earlier masks left only {self.alive} "
                f"alive, and removed weights never return. "
                f"Ask for at most {self.alive / self.total:g}"
            )
        if self.keep < self.reserved:
            raise MaskError(
                f"{asked} is {self.keep} {self.noun}, but min_density reserves {self.reserved}: at "
                f"least one in each layer. Lower min_density, or raise the density"
            )


def resolve_density(density: float | None, sparsity: float | None) -> float:
    """Returns the fraction of weights to keep from either way of giving it.

    Args:
        density: Fraction of weights kept, in (0, 1].
        sparsity: Fraction of weights removed, in [0, 1): 1 - density.

    Raises:
        ValueError: Unless exactly one is given and in its range.
        TypeError: If it is not a number.
    """
    if (density is None) == (sparsity is None):
        got = "neither" if density is None else f"density={density} and sparsity={sparsity}"
        raise ValueError(
            f"give exactly one of density= (fraction kept) and sparsity= (fraction removed), "
            f"got {got}"
        )
    if sparsity is None:
        return check_fraction("density", density)
    return check_fraction("sparsity", sparsity, removed=True)


def check_fraction(name: str, given: Any, removed: bool = False) -> float:
    """Returns the fraction of weights that an argument says to keep.

    Args:
        name: The argument's name.
        given: Its value.
        removed: Whether it is the fraction to remove.

    Raises:
        ValueError: If it is out of its range.
        TypeError: If it is not a number.
    """
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name} must be a number, got {given!r}")
    kept = 1.0 - given if removed else float(given)
    if not 0.0 < kept <= 1.0:
        allowed = "[0, 1)" if removed else "(0, 1]"
        raise ValueError(f"{name} must be in {allowed}, got {given}: it is a fraction, not percent")
    return kept


def check_scope(scope: str) -> None:
    """Raises unless the scope is one that exists."""
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(map(repr, SCOPES))}, got {scope!r}")


def budgets(units: Units, density: float, scope: str, noun: str = "weights") -> list[Budget]:
    """Divides the units into the groups that compete: one, or one per layer.

    Args:
        units: The units.
        density: Fraction of the units of each group that is to be kept.
        scope: "global" or "layer".
        noun: What the units are called.
    """
    names = tuple(units.scores)
    groups = [names] if scope == "global" else [(name,) for name in names]
    return [
        Budget(
            group,
            density,
            total=sum(units.scores[name].numel() for name in group),
            alive=sum(units.count_alive(name) for name in group),
            reserved=sum(units.count_reserved(name) for name in group),
            noun=noun,
        )
        for group in groups
    ]


def keep_highest(units: Units, shares: list[Budget]) -> dict[str, Tensor]:
    """Keeps the reserved units of each group, and the highest of the others.

    As many are kept as the group's budget says, or are alive.

    Returns:
        Bool masks of the units by name, in the order of the scores.
    """
    kept: dict[str, Tensor] = {}
    for share in shares:
        kept.update(_keep_highest(units, share))
    return {name: kept[name] for name in units.scores}


def with_floors(units: Units, min_density: float) -> Units:
    """Reserves the highest units of each layer, so that none falls below a density.

    Args:
        units: The units, none of them reserved.
        min_density: The least fraction of each layer that is kept, above 0 and so at least one
            unit; all that are alive, where earlier masks have left fewer.
    """
    reserved = {}
    for name, score in units.scores.items():
        floor = min(_least(min_density, score.numel()), units.count_alive(name))
        if floor:
            layer, alive = [score], [units.alive.get(name)]
            threshold = select_threshold(layer, floor, alive, [name])
            (reserved[name],) = write_masks(layer, threshold, alive)
    return replace(units, reserved=reserved)


def _keep_highest(units: Units, share: Budget) -> dict[str, Tensor]:
    """Returns the masks of the layers that share a budget."""
    scores = [units.scores[name] for name in share.names]
    reserved = [units.reserved.get(name) for name in share.names]
    others = [
        alive if taken is None else ~taken if alive is None else alive & ~taken
        for alive, taken in zip(
            (units.alive.get(name) for name in share.names), reserved, strict=True
        )
    ]
    count = min(share.keep, share.alive) - share.reserved
    if count > 0:
        threshold = select_threshold(scores, count, others, share.names)
        masks = write_masks(scores, threshold, others)
    else:
        masks = [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    for mask, taken in zip(masks, reserved, strict=True):
        if taken is not None:
            mask |= taken
    return dict(zip(share.names, masks, strict=True))


def _least(fraction: float, total: int) -> int:
    """Returns the smallest number that is this fraction of a total, or more."""
    if total == 0:
        return 0
    near = math.floor(fraction * total)  # rounded: 0.07 * 100 is above 7
    return next(k for k in range(max(near - 1, 0), near + 3) if k / total >= fraction)
