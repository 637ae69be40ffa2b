"""How many weights stay, and in which layers they compete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pxfast.errors import MaskError
from pxfast.selection.threshold import select_threshold, write_masks

SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Budget:
    """The layers that compete for one number of kept weights.

    Attributes:
        names: Names of the layers' weights, in parameter order.
        density: Fraction of the weights that is to be kept.
        total: Number of weights.
        alive: Number of weights that no earlier mask removed.
    """

    names: tuple[str, ...]
    density: float
    total: int
    alive: int

    @property
    def keep(self) -> int:
        """Number of weights to keep: round(density · total)."""
        return round(self.density * self.total)

    def check(self) -> None:
        """Raises a MaskError unless the number can be kept exactly."""
        where = f"'{self.names[0]}'" if len(self.names) == 1 else f"{len(self.names)} layers"
        asked = f"density {self.density:g} of the {self.total} weights in {where}"
        if self.keep < 1:
            raise MaskError(
                f"{asked} rounds to no weight at all. Raise the density"
                + (", or exclude the layer" if len(self.names) == 1 else "")
            )
        if self.keep > self.alive:
            raise MaskError(
                f"{asked} is {self.keep} weights, but earlier masks left only {self.alive} alive, "
                f"and removed weights never return. Ask for at most {self.alive / self.total:g}"
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
    name, given = ("density", density) if sparsity is None else ("sparsity", sparsity)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name} must be a number, got {given!r}")
    kept = float(given) if sparsity is None else 1.0 - given
    if not 0.0 < kept <= 1.0:
        allowed = "(0, 1]" if sparsity is None else "[0, 1)"
        raise ValueError(f"{name} must be in {allowed}, got {given}: it is a fraction, not percent")
    return kept


def check_scope(scope: str) -> None:
    """Raises unless the scope is one that exists."""
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(map(repr, SCOPES))}, got {scope!r}")


def budgets(
    scores: Mapping[str, Tensor], density: float, scope: str, alive: Mapping[str, Tensor]
) -> list[Budget]:
    """Divides the weights into the groups that compete: one, or one per layer.

    Args:
        scores: Scores by name.
        density: Fraction of the weights of each group that is to be kept.
        scope: "global" or "layer".
        alive: Bool masks of earlier rounds by name; a missing name is wholly alive.
    """
    check_scope(scope)
    groups = [tuple(scores)] if scope == "global" else [(name,) for name in scores]
    return [
        Budget(
            names,
            density,
            total=sum(scores[name].numel() for name in names),
            alive=sum(
                int(alive[name].count_nonzero()) if name in alive else scores[name].numel()
                for name in names
            ),
        )
        for names in groups
    ]


def keep_highest(
    scores: Mapping[str, Tensor], shares: list[Budget], alive: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Keeps the highest scores of each group, as many as its budget says or are alive.

    Returns:
        Bool masks by name, in the order of the scores.
    """
    kept: dict[str, Tensor] = {}
    for share in shares:
        group = [scores[name] for name in share.names]
        before = [
            alive[name].to(score.device) if name in alive else None
            for name, score in zip(share.names, group, strict=True)
        ]
        threshold = select_threshold(group, min(share.keep, share.alive), before)
        masks = write_masks(group, threshold, before)
        kept.update(zip(share.names, masks, strict=True))
    return {name: kept[name] for name in scores}
