"""Identities of scores: conservation, rescaling, permutation."""

from __future__ import annotations

import nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import CRITERIA, assert_bit_equal, assert_same
from tolerances import DEEP_NET, SMALL_NET, close
from torch import nn

import pxfast

F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize("criterion", CRITERIA)
def test_layers_that_cut_every_path_total_one(criterion, resnet, images):
    masks = nets.random_masks(resnet, 0.4)
    totals = pxfast.score(resnet, images, criterion=criterion, masks=masks).totals()
    for name in ("conv1.weight", "fc.weight"):
        assert totals[name] == pytest.approx(1, abs=DEEP_NET[F32])
    assert all(0 < total < 1 + DEEP_NET[F32] for total in totals.values())


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
    density=st.floats(0.3, 1.0),
)
def test_every_layer_of_a_chain_totals_one(sizes, seed, density):
    model = nets.mlp(seed, tuple(sizes)).double()
    for index in range(1, len(model), 2):
        model[index] = nn.LeakyReLU(0.1)  # a ReLU may close every path
    x = nets.random_batch((sizes[0],), 3, seed).double()
    scores = pxfast.score(model, x, masks=nets.random_masks(model, density, seed))
    for total in scores.totals().values():
        assert total == pytest.approx(1, abs=SMALL_NET[F64])
    assert all(bool((score >= 0).all()) for score in scores.values())


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("factor", [4.0, 0.125])
def test_rescaling_a_channel_by_a_power_of_two_is_bit_exact(criterion, factor):
    model, x = nets.conv(seed=1), nets.random_batch((1, 5, 5), 3)
    masks = nets.random_masks(model, 0.8)
    before = pxfast.score(model, x, criterion=criterion, masks=masks)
    with torch.no_grad():
        model[0].weight[1] *= factor
        model[0].bias[1] *= factor
        model[2].weight[:, 1] /= factor
    assert_bit_equal(pxfast.score(model, x, criterion=criterion, masks=masks), before)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rescaling_a_channel_by_any_factor(criterion):
    model, x = nets.leaky(seed=1).double(), nets.random_batch((4,), 3).double()
    before = pxfast.score(model, x, criterion=criterion)
    with torch.no_grad():
        model[0].weight[2] *= 3.7
        model[0].bias[2] *= 3.7
        model[2].weight[:, 2] /= 3.7
    assert_same(pxfast.score(model, x, criterion=criterion), before, SMALL_NET[F64])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_permuting_hidden_channels_permutes_scores(criterion):
    model, x = nets.conv(seed=2, channels=4).double(), nets.random_batch((1, 5, 5), 3).double()
    masks = nets.random_masks(model, 0.7)
    before = pxfast.score(model, x, criterion=criterion, masks=masks)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, masks["0.weight"]):
            tensor.copy_(tensor[order].clone())
        for tensor in (model[2].weight, masks["2.weight"]):
            tensor.copy_(tensor[:, order].clone())
    after = pxfast.score(model, x, criterion=criterion, masks=masks)
    close(after["0.weight"], before["0.weight"][order], SMALL_NET[F64])
    close(after["2.weight"], before["2.weight"][:, order], SMALL_NET[F64])
    close(after["5.weight"], before["5.weight"], SMALL_NET[F64])
