"""The engine against the reference's literal networks h, g and J, and against every path."""

from __future__ import annotations

import nets
import pytest
import torch
from scored import CRITERIA, assert_same
from tolerances import DEEP_NET, SMALL_NET

import pxfast
from pxfast import models
from pxfast.reference import px
from pxfast.reference.paths import score_by_paths

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [None, 0.5])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", nets.NETS)
def test_small_nets(name, criterion, density, dtype):
    net = nets.NETS[name]
    for seed in range(3):
        model, x = net.build(seed=seed).to(dtype), nets.random_batch(net.shape, 5, seed).to(dtype)
        masks = nets.random_masks(model, density, seed) if density else None
        scores = pxfast.score(model, x, criterion=criterion, masks=masks)
        expected = px.score(model, x, criterion=criterion, masks=masks)
        assert_same(scores, expected, SMALL_NET[dtype])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("track", [True, False])
def test_batchnorm_with_the_data_s_statistics(criterion, track):
    model = nets.batchnorm(track_running_stats=track).double()
    data = [nets.random_batch((1, 4, 4), 6, seed).double() for seed in range(2)]
    masks = nets.random_masks(model, 0.6)
    scores = pxfast.score(model, data, criterion=criterion, masks=masks, batchnorm="data")
    expected = px.score(model, data, criterion=criterion, masks=masks, batchnorm="data")
    assert_same(scores, expected, SMALL_NET[torch.float64])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "concat", "maxpool", "leaky"])
def test_explicit_sum_over_all_paths(name, criterion):
    net = nets.NETS[name]
    model, x = net.build(seed=4).double(), nets.random_batch(net.shape, 3, 4).double()
    masks = nets.random_masks(model, 0.7, 4)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    expected = score_by_paths(model, x, masks=masks, criterion=criterion)
    assert_same(scores, {name: expected[name] for name in scores}, SMALL_NET[torch.float64])


@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("architecture", ["resnet20", "vgg16"])
def test_resnet20_and_vgg16(architecture, criterion, batchnorm):
    torch.manual_seed(1)
    model = getattr(models, architecture)(batchnorm=batchnorm).eval()
    x = torch.randn(2, 3, 32, 32)
    masks = nets.random_masks(model, 0.3)
    expected = px.score(model.double(), x.double(), criterion=criterion, masks=masks)
    close_to = DEEP_NET[torch.float32]
    assert_same(
        pxfast.score(model.float(), x, criterion=criterion, masks=masks), expected, close_to
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_have_float32_scores(dtype):
    net = nets.NETS["mlp"]
    model, x = net.build(seed=2).to(dtype), nets.random_batch(net.shape, 4, 2).to(dtype)
    scores = pxfast.score(model, x)  # the data pass is skipped: no gate is rounded to the dtype
    assert all(score.dtype == torch.float32 for score in scores.values())
    assert_same(scores, px.score(model.double(), x.double()), SMALL_NET[torch.float32])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("batchnorm", [True, False])
def test_dead_channels_and_empty_layers_are_left_out_exactly(criterion, batchnorm):
    torch.manual_seed(2)
    model = models.resnet20(batchnorm=batchnorm).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(-0.1, 0.3)  # biases count where a channel has lost its weights
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    masks = nets.random_masks(model, 0.3)
    for index, mask in enumerate(masks.values()):
        if index and mask.dim() == 4:
            mask[mask.shape[0] // 4 :] = False
        if index == 3:
            mask.fill_(False)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert_same(
        scores, px.score(model, x, criterion=criterion, masks=masks), DEEP_NET[torch.float64]
    )
