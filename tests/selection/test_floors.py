"""Floors: no layer falls below a density, and the total is still exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_selection import Layers, check_selection, layers

from pxfast.errors import MaskError
from pxfast.selection import Scores


@settings(max_examples=60, deadline=None)
@given(layers(), st.data(), st.sampled_from([1e-9, 0.07, 0.25, 0.3, 0.5, 1.0]))
def test_equals_floors_first_then_a_stable_sort(case, data, min_density):
    slow = Layers(*case)
    check_selection(data, slow, slow.single_weights(), min_density)


def test_every_layer_keeps_its_floor():
    scores = Scores({"a": torch.rand(10, 10) + 9, "b": torch.rand(100), "c": torch.rand(3)})
    without = scores.masks(density=0.4)
    assert [layer.kept for layer in without.layers] == [81, 0, 0]
    masks = scores.masks(density=0.4, min_density=0.07)
    assert [layer.kept for layer in masks.layers] == [73, 7, 1]
    assert masks.provenance["min_density"] == 0.07
    assert "min_density" not in without.provenance


@pytest.mark.parametrize(("fraction", "kept"), [
    (0.07, 7), (0.29, 29), (0.28, 28), (0.071, 8), (1e-12, 1), (0.56, 56), (0.57, 57),
])  # fmt: skip
def test_a_floor_is_the_least_number_of_that_fraction(fraction, kept):
    """0.07 * 100 is 7.000000000000001 in floats."""
    scores = Scores({"a": torch.rand(900) + 9, "b": torch.rand(100)})
    assert scores.masks(density=0.8, min_density=fraction)["b"].sum() == kept


def test_earlier_masks_may_have_left_less():
    scores = Scores({"a": torch.rand(8) + 9, "b": torch.rand(8), "c": torch.rand(8)})
    before = {"b": torch.arange(8) == 5, "c": torch.zeros(8)}
    masks = scores.masks(density=6 / 24, min_density=0.25, masks=before)
    assert [layer.kept for layer in masks.layers] == [5, 1, 0]
    assert masks["b"][5]


def test_floors_above_the_density_are_refused():
    scores = Scores({"a": torch.rand(50), "b": torch.rand(50)})
    with pytest.raises(MaskError, match=r"is 20 weights, but min_density reserves 30.*Lower min_d"):
        scores.masks(density=0.2, min_density=0.3)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"min_density": 0.0}, ValueError, r"min_density must be in \(0, 1\], got 0\.0"),
    ({"min_density": 3}, ValueError, "got 3: it is a fraction, not percent"),
    ({"min_density": True}, TypeError, "min_density must be a number, got True"),
    ({"min_density": 0.1, "scope": "layer"}, ValueError, "scope='layer' keeps the same fraction"),
    ({"min_density": 0.1, "pattern": "2:4"}, ValueError, "pattern=2:4 keeps the same fraction"),
])  # fmt: skip
def test_floors_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=message):
        Scores({"a": torch.rand(4, 4)}).masks(density=0.5, **options)
