"""Channels: whole rows, exactly as many as asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_selection import Layers, check_selection, layers
from torch import nn

import pxfast
from pxfast.errors import MaskError
from pxfast.patterns import Channels


@settings(max_examples=60, deadline=None)
@given(layers(), st.data(), st.sampled_from([None, None, 0.01, 0.3]))
def test_equals_a_stable_sort_of_exact_sums(case, data, min_density):
    slow = Layers(*case)
    check_selection(data, slow, slow.output_channels(), min_density, Channels())


def test_the_density_is_that_of_channels():
    tensors = {"conv": torch.ones(4, 2, 3, 3), "fc": torch.rand(6, 10)}
    masks = pxfast.Scores(tensors).masks(density=0.5, pattern="channels")
    assert masks["conv"].all() and masks["fc"].flatten(1).any(1).sum() == 1
    assert masks.kept == 72 + 10
    assert masks.provenance == {"density": 0.5, "scope": "global", "pattern": "channels"}
    each = pxfast.Scores(tensors).masks(density=0.5, pattern="channels", scope="layer")
    assert [mask.flatten(1).any(1).sum() for mask in each.values()] == [2, 3]
    assert pxfast.Scores(tensors).masks(sparsity=0.5, pattern="channels") == masks


def test_sums_that_float32_cannot_tell_apart():
    rows = torch.full((3, 4), 1.0)
    rows[0, 0], rows[1, 0], rows[2, 0] = 2.0**25 + 4, 2.0**25, 2.0**25 + 4
    rows[2, 1] += 2.0**-20
    masks = pxfast.Scores({"w": rows}).masks(density=1 / 3, pattern="channels")
    assert masks["w"][:, 0].tolist() == [False, False, True]


def test_equal_channels_tie_in_any_order_of_their_terms():
    terms = torch.randn(1001) * torch.pow(10.0, torch.empty(1001).uniform_(-6, 6))
    rows = torch.stack([terms[torch.randperm(1001)] for _ in range(6)])
    masks = pxfast.Scores({"a": rows[:3], "b": rows[3:]}).masks(density=4 / 6, pattern="channels")
    assert masks["a"].all()
    assert masks["b"].all(1).tolist() == [True, False, False]


def test_masked_weights_add_nothing_and_dead_channels_never_return():
    scores = pxfast.Scores({"w": torch.tensor([[9.0, 0.0], [1.0, 1.0], [5.0, 5.0], [0.0, 0.0]])})
    before = {"w": torch.tensor([[0, 1], [1, 1], [0, 0], [1, 1]])}
    masks = scores.masks(density=0.5, pattern="channels", masks=before)
    assert masks["w"].int().tolist() == [[0, 1], [1, 1], [0, 0], [0, 0]]
    with pytest.raises(MaskError, match=r"4 channels in 'w' is 4 channels, but .* only 3 alive"):
        scores.masks(density=1.0, pattern="channels", masks=before)


def test_too_few_channels():
    scores = pxfast.Scores({"a": torch.rand(9, 9), "b": torch.rand(4, 9)})
    with pytest.raises(MaskError, match="4 channels in 'b' rounds to no channel at all"):
        scores.masks(density=0.1, pattern="channels", scope="layer")


@pytest.mark.parametrize("groups", [1, 3])
def test_outputs_of_transposed_convolutions(groups):
    layer = nn.ConvTranspose1d(6, 9, 2, groups=groups)
    scores = pxfast.Scores({"weight": torch.rand_like(layer.weight)})
    masks = scores.masks(density=2 / 9, pattern=Channels().of(nn.DataParallel(layer)))
    with torch.no_grad():
        layer.weight.copy_(scores["weight"])
        total = layer.weight.sum((0, 2)) if groups == 1 else None
        masks.apply_(layer)
        layer.bias.zero_()
        out = layer(torch.ones(1, 6, 5))[0].sum(1)
    assert int((out != 0).sum()) == 2
    if total is not None:
        assert set(out.nonzero()[:, 0].tolist()) == set(total.topk(2).indices.tolist())


def test_vectors_stay_dense_and_are_named():
    scores = pxfast.Scores({"scale": torch.rand(8), "fc": torch.rand(4, 2)})
    with pytest.warns(UserWarning, match=r"pattern=channels .* dense: scale \(shape \[8\]\)"):
        masks = scores.masks(density=0.5, pattern="channels")
    assert masks["scale"].all()
    assert masks["fc"].sum() == 4
    with pytest.raises(MaskError, match="there are none"):
        pxfast.Scores({"scale": torch.rand(8)}).masks(density=0.5, pattern="channels")
