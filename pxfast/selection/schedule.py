"""The densities that the rounds of pruning go through."""

from __future__ import annotations

import math
from collections.abc import Sequence

SCHEDULES = ("exponential", "linear")


def densities(
    schedule: str | Sequence[float], density: float, rounds: int, start: float = 1.0
) -> list[float]:
    """Returns the density after each round.

    "exponential" is the paper's: density_r = density^(r/rounds), or, when earlier masks left only
    the fraction `start`, start · (density/start)^(r/rounds). "linear" removes the same number of
    weights in every round.

    Args:
        schedule: "exponential", "linear", or the densities themselves, one per round, which fall
            to `density`.
        density: Density after the last round.
        rounds: Number of rounds; a list of densities has its own.
        start: Density before the first round.

    Returns:
        One density per round; the last is exactly `density`.

    Raises:
        ValueError: If the schedule or the number of rounds makes no sense.
        TypeError: If they are of the wrong type.
    """
    if not isinstance(schedule, str):
        return _given(schedule, density)
    if isinstance(rounds, bool) or not isinstance(rounds, int):
        raise TypeError(f"rounds must be a whole number, got {rounds!r}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    fractions = [r / rounds for r in range(1, rounds)]
    if schedule == "exponential":
        return [start * (density / start) ** fraction for fraction in fractions] + [density]
    if schedule == "linear":
        return [start + (density - start) * fraction for fraction in fractions] + [density]
    raise ValueError(
        f"schedule must be one of {', '.join(map(repr, SCHEDULES))} or a list of densities, "
        f"got {schedule!r}"
    )


def _given(schedule: Sequence[float], density: float) -> list[float]:
    """Checks a user's own list of densities."""
    try:
        given = [float(value) for value in schedule]
    except (TypeError, ValueError):
        raise TypeError(
            f"schedule must be one of {', '.join(map(repr, SCHEDULES))} or a list of densities, "
            f"got {schedule!r}"
        ) from None
    if not given:
        raise ValueError("schedule is an empty list: give one density per round")
    if not all(later <= earlier for earlier, later in zip([1.0, *given], given, strict=False)):
        raise ValueError(
            f"schedule must fall from at most 1: removed weights never return: {given}"
        )
    if not math.isclose(given[-1], density, rel_tol=1e-9):
        raise ValueError(f"schedule must end at the density asked for, {density:g}: {given}")
    return [*given[:-1], density]
