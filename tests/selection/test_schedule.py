"""The densities of the rounds."""

from __future__ import annotations

import math

import pytest

from pxfast.selection.schedule import densities


def test_exponential_is_the_papers():
    path = densities("exponential", 0.02, 100)
    assert path == [0.02 ** (r / 100) for r in range(1, 100)] + [0.02]


def test_linear_removes_the_same_number_in_each_round():
    path = densities("linear", 0.2, 4)
    assert path == pytest.approx([0.8, 0.6, 0.4, 0.2], rel=1e-15)
    assert path[-1] == 0.2


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
@pytest.mark.parametrize(("density", "rounds", "start"), [
    (0.02, 7, 1.0), (0.1, 50, 0.3), (1.0, 3, 1.0), (1e-6, 1, 0.5),
])  # fmt: skip
def test_falls_from_start_to_the_density_exactly(schedule, density, rounds, start):
    path = densities(schedule, density, rounds, start)
    assert len(path) == rounds
    assert path[-1] == density
    assert all(a >= b for a, b in zip([start, *path], path, strict=False))
    if schedule == "exponential" and rounds > 1:
        factors = [b / a for a, b in zip([start, *path], path, strict=False)]
        assert all(math.isclose(factor, factors[0], rel_tol=1e-12) for factor in factors)


def test_a_list_sets_the_number_of_rounds():
    assert densities([0.5, 0.5, 0.1], 0.1, 100) == [0.5, 0.5, 0.1]
    assert densities((1, 1 - 0.98), 0.02, 100) == [1.0, 0.02]


@pytest.mark.parametrize(("schedule", "message"), [
    ("cosine", "'exponential', 'linear' or a list of densities, got 'cosine'"),
    ([], "empty list"),
    ([0.5, 0.6, 0.1], "must fall"),
    ([1.5, 0.1], "must fall from at most 1"),
    ([0.5, 0.2], "must end at the density asked for, 0.1"),
    ([float("nan"), 0.1], "must fall"),
])  # fmt: skip
def test_schedules_that_make_no_sense(schedule, message):
    with pytest.raises(ValueError, match=message):
        densities(schedule, 0.1, 10)


@pytest.mark.parametrize("schedule", [None, 3, ["a"]])
def test_schedules_of_the_wrong_type(schedule):
    with pytest.raises(TypeError, match="schedule must be one of"):
        densities(schedule, 0.1, 10)


@pytest.mark.parametrize(("rounds", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError),
                                               (True, TypeError), ("3", TypeError)])  # fmt: skip
def test_numbers_of_rounds(rounds, error):
    with pytest.raises(error, match="rounds must be"):
        densities("exponential", 0.1, rounds)
