"""Scores as a mapping, and one-shot masks from them."""

from __future__ import annotations

import math

import pytest
import torch

from pxfast.errors import FileFormatError, MaskError, RangeError
from pxfast.selection import Masks, Scores


def scores() -> Scores:
    mapping = {
        "z.weight": torch.tensor([[0.5, 0.0], [0.25, 0.0]]),
        "a.weight": torch.tensor([0.5, 0.125, 0.0, -1.0]),
    }
    return Scores(mapping, {"criterion": "mine", "samples": 3})


def test_is_a_mapping_in_the_given_order():
    assert list(scores()) == ["z.weight", "a.weight"]
    assert len(scores()) == 2
    assert scores()["z.weight"].shape == (2, 2)
    assert scores().total == 8
    assert scores().totals() == {"z.weight": 0.75, "a.weight": -0.375}
    assert repr(scores()) == "Scores(2 layers, 8 weights, mine)"


def test_totals_are_summed_in_float64():
    ones = torch.full((3,), 1.0)
    ones[0] = 2.0**24
    assert Scores({"w": ones}).totals() == {"w": 2.0**24 + 2}


@pytest.mark.parametrize(("keep", "z", "a"), [
    (1, [1, 0, 0, 0], [0, 0, 0, 0]),
    (2, [1, 0, 0, 0], [1, 0, 0, 0]),
    (5, [1, 1, 1, 0], [1, 1, 0, 0]),
    (7, [1, 1, 1, 1], [1, 1, 1, 0]),
    (8, [1, 1, 1, 1], [1, 1, 1, 1]),
])  # fmt: skip
def test_global_masks(keep, z, a):
    masks = scores().masks(density=keep / 8)
    assert isinstance(masks, Masks)
    assert list(masks) == ["z.weight", "a.weight"]
    assert masks["z.weight"].int().flatten().tolist() == z
    assert masks["a.weight"].int().tolist() == a
    assert masks.kept == keep


def test_sparsity_is_the_other_fraction():
    assert scores().masks(sparsity=0.75) == scores().masks(density=0.25)


def test_each_layer_keeps_its_own_fraction():
    masks = scores().masks(density=0.5, scope="layer")
    assert masks["z.weight"].int().flatten().tolist() == [1, 0, 1, 0]
    assert masks["a.weight"].int().tolist() == [1, 1, 0, 0]


def test_removed_weights_never_return():
    """Alive weights come before masked ones whatever the scores: 0, and here negative."""
    before = {"z.weight": torch.tensor([[0, 1], [1, 1]]), "a.weight": torch.tensor([1, 1, 0, 1])}
    masks = scores().masks(density=6 / 8, masks=before)
    assert masks["z.weight"].int().flatten().tolist() == [0, 1, 1, 1]
    assert masks["a.weight"].int().tolist() == [1, 1, 0, 1]
    with pytest.raises(MaskError, match="only 6 alive"):
        scores().masks(density=7 / 8, masks=before)


def test_masks_may_name_some_layers_only():
    masks = scores().masks(density=0.5, masks={"z.weight": torch.zeros(2, 2)})
    assert masks["a.weight"].all()


def test_provenance_reaches_the_masks():
    assert scores().masks(density=0.25).provenance == {
        "criterion": "mine", "samples": 3, "density": 0.25, "scope": "global",
    }  # fmt: skip


@pytest.mark.parametrize(("masks", "message"), [
    ({"nobody": torch.ones(4)}, "have no score: nobody"),
    ({"a.weight": torch.ones(2, 2)}, r"shape \[2, 2\] for 'a.weight', expected .* \[4\]"),
    ({"a.weight": torch.tensor([0.5, 1, 1, 1])}, "only 0 and 1"),
    ({"a.weight": torch.tensor([math.nan, 1, 1, 1])}, "only 0 and 1"),
    ({"a.weight": [1, 1, 1, 1]}, "must be a tensor, got list"),
])  # fmt: skip
def test_masks_that_do_not_fit(masks, message):
    with pytest.raises(MaskError, match=message):
        scores().masks(density=0.5, masks=masks)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_are_refused_by_name(bad):
    with pytest.raises(RangeError, match=r"'b' has 1 NaN or infinite of 3"):
        Scores({"a": torch.ones(3), "b": torch.tensor([1.0, bad, 1.0])})


@pytest.mark.parametrize(("mapping", "error", "message"), [
    ({}, ValueError, "at least one weight"),
    ([("a", torch.ones(2))], TypeError, "needs a mapping .* got list"),
    ({"a": torch.ones(2).long()}, TypeError, "'a' must be a floating tensor, got torch.int64"),
    ({"a": [1.0]}, TypeError, "'a' must be a tensor, got list"),
    ({1: torch.ones(2)}, TypeError, "names must be strings, got 1"),
    ({"a": torch.ones(2).to_sparse()}, TypeError, "'a' must be a dense tensor"),
    ({"a": torch.ones(2, device="meta")}, TypeError, "'a' is on the meta device"),
])  # fmt: skip
def test_bad_mappings(mapping, error, message):
    with pytest.raises(error, match=message):
        Scores(mapping)


def test_scores_do_not_hold_a_graph():
    weight = torch.ones(3, requires_grad=True)
    assert not Scores({"w": weight * 2})["w"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saved_and_loaded(tmp_path, dtype):
    flat = torch.randn(7, dtype=dtype)
    saved = Scores(
        {"z": flat[:4].view(2, 2).T, "a": flat[4:], "e": torch.ones(0, 3)}, {"seed": 1}
    )  # views that share memory, not contiguous, empty
    saved.save(tmp_path / "s.safetensors")
    loaded = Scores.load(tmp_path / "s.safetensors")
    assert loaded == saved
    assert list(loaded) == ["z", "a", "e"]
    assert loaded.provenance == {"seed": 1}


def test_a_file_of_masks_is_no_file_of_scores(tmp_path):
    scores().masks(density=0.5).save(tmp_path / "m.safetensors")
    with pytest.raises(FileFormatError, match=r"holds pxfast\.masks, expected a pxfast\.scores"):
        Scores.load(tmp_path / "m.safetensors")


def test_equality_tells_names_order_values_and_dtype_apart():
    one = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert Scores(one) == Scores(dict(one))
    assert Scores(one) != Scores({"b": one["b"], "a": one["a"]})
    assert Scores(one) != Scores({**one, "b": torch.ones(2)})
    assert Scores(one) != Scores({name: value.double() for name, value in one.items()})
    assert Scores(one) != Scores({"a": one["a"]})
    assert Scores(one) != one
