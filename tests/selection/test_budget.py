"""How many weights stay."""

from __future__ import annotations

import pytest
import torch

from pxfast.errors import MaskError
from pxfast.selection.budget import budgets, resolve_density
from pxfast.selection.patterns import Units


@pytest.mark.parametrize(("density", "sparsity", "kept"), [
    (0.02, None, 0.02), (None, 0.75, 0.25), (1, None, 1.0), (None, 0, 1.0),
])  # fmt: skip
def test_density_and_sparsity(density, sparsity, kept):
    assert resolve_density(density, sparsity) == kept


@pytest.mark.parametrize(("density", "sparsity", "message"), [
    (None, None, "exactly one .* got neither"),
    (0.1, 0.9, r"exactly one .* got density=0\.1 and sparsity=0\.9"),
    (0.0, None, r"density must be in \(0, 1\], got 0\.0"),
    (-0.1, None, r"density must be in \(0, 1\]"),
    (98, None, "got 98: it is a fraction, not percent"),
    (None, 1.0, r"sparsity must be in \[0, 1\), got 1\.0"),
    (None, -0.5, r"sparsity must be in \[0, 1\)"),
    (float("nan"), None, "density must be in"),
    (None, float("nan"), "sparsity must be in"),
])  # fmt: skip
def test_out_of_range(density, sparsity, message):
    with pytest.raises(ValueError, match=message):
        resolve_density(density, sparsity)


@pytest.mark.parametrize("value", [True, "0.1", [0.1]])
def test_not_a_number(value):
    with pytest.raises(TypeError, match="density must be a number"):
        resolve_density(value, None)


def test_python_rounding_global_and_per_layer():
    scores = {"a": torch.ones(5), "b": torch.ones(2, 5)}
    assert [x.keep for x in budgets(Units(scores, {}), 0.5, "global")] == [round(7.5)] == [8]
    assert [x.keep for x in budgets(Units(scores, {}), 0.5, "layer")] == [round(2.5), 5] == [2, 5]


def test_too_few_weights_left_names_the_layer():
    scores = {"a": torch.ones(100), "tiny": torch.ones(10)}
    share = budgets(Units(scores, {}), 0.02, "layer")[1]
    with pytest.raises(MaskError, match=r"10 weights in 'tiny' rounds to no weight .* exclude"):
        share.check()
    budgets(Units(scores, {}), 0.02, "global")[0].check()


def test_more_than_alive_is_refused():
    alive = {"b": torch.tensor([True, False, False, False])}
    units = Units({"a": torch.ones(4), "b": torch.ones(4)}, alive)
    share = budgets(units, 0.75, "global")[0]
    assert (share.total, share.alive, share.keep) == (8, 5, 6)
    with pytest.raises(MaskError, match=r"6 weights, but .* only 5 alive"):
        share.check()
