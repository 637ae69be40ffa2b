"""Layers that keep few weights take value and path through them in one pass."""

from __future__ import annotations

import nets
import pytest
import torch
from backends import instruction_set, instruction_sets, need
from tolerances import DEEP_NET, close
from torch import nn

import pxfast
from pxfast import _native, models, ops
from pxfast.paths.rules import convolution
from pxfast.reference import px

F32, F64 = torch.float32, torch.float64


@pytest.fixture(scope="module", autouse=True)
def kernels():
    need("cpu", _native.problem)


@pytest.fixture
def calls(monkeypatch):
    """What the op was called with."""
    seen = []

    def recorded(*args, **kwargs):
        seen.append(args)
        return original(*args, **kwargs)

    original = ops.sparse_dual_conv2d
    monkeypatch.setattr(ops, "sparse_dual_conv2d", recorded)
    return seen


def geometries():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 8, (3, 1), stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding="same", dilation=2), nn.GELU(),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_scores_are_those_of_the_reference(calls, criterion, dtype):
    torch.manual_seed(5)
    x = torch.randn(3, 2, 20, 17, dtype=F64)
    model = geometries().double()
    model(x)
    model.eval()
    masks = nets.random_masks(model, 0.17)
    expected = px.score(model, x, criterion=criterion, masks=masks)
    scores = pxfast.score(model.to(dtype), x.to(dtype), criterion=criterion, masks=masks)
    assert len(calls) >= 4
    assert list(scores) == list(expected)
    for name, values in expected.items():
        close(scores[name], values, DEEP_NET[dtype], name)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_a_deep_network_scores_as_with_dense_layers(calls, criterion, monkeypatch):
    torch.manual_seed(5)
    model, x = models.resnet20().eval(), torch.randn(4, 3, 16, 16)
    masks = nets.random_masks(model, 0.15)
    sparse = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert calls
    monkeypatch.setattr(convolution, "sparse_convolution_pays", lambda *_: False)
    calls.clear()
    dense = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert not calls
    for name, values in dense.items():
        close(sparse[name], values, DEEP_NET[F32], name)


def test_where_it_does_not_pay_layers_stay_dense(calls):
    model, x = geometries(), torch.randn(3, 2, 20, 17)
    model(x)
    model.eval()
    with instruction_set("base"):
        pxfast.score(model, x, masks=nets.random_masks(model, 0.6))
    pxfast.score(model[:2], x[..., :8, :8], masks=nets.random_masks(model[:2], 0.6))
    pxfast.score(model, x, masks=nets.random_masks(model, 0.2), dtype=torch.bfloat16)
    assert not calls
    channels_last = x.contiguous(memory_format=torch.channels_last)
    pxfast.score(model[:2], channels_last, masks=nets.random_masks(model[:2], 0.2))
    assert not calls


def test_when_few_weights_are_few_enough():
    weight, many = torch.ones(8, 8, 3, 3), torch.ones(64, 8, 3, 3)
    large, small = torch.ones(3, 8, 67, 1), torch.ones(2, 8, 10, 10)
    for isa in instruction_sets():
        with instruction_set(isa):
            assert ops.sparse_dual_conv2d_pays(large, weight, 0.4)
            assert ops.sparse_dual_conv2d_pays(large, weight, 0.41) == (isa == "avx512")
            assert ops.sparse_dual_conv2d_pays(large, weight, 1.0) == (isa == "avx512")
            assert ops.sparse_dual_conv2d_pays(large, many, 0.5) == (isa == "avx512")
            assert not ops.sparse_dual_conv2d_pays(large, many, 0.51)
            assert ops.sparse_dual_conv2d_pays(small, weight, 0.15)
            assert not ops.sparse_dual_conv2d_pays(small, weight, 0.16)
            assert not ops.sparse_dual_conv2d_pays(large.bfloat16(), weight, 0.1)
            assert not ops.sparse_dual_conv2d_pays(large.to("meta"), weight, 0.1)


# ---- linear layers


@pytest.fixture
def linear_calls(monkeypatch):
    """What sparse_dual_linear was called with."""
    seen = []

    def recorded(*args, **kwargs):
        seen.append(args)
        return original(*args, **kwargs)

    original = ops.sparse_dual_linear
    monkeypatch.setattr(ops, "sparse_dual_linear", recorded)
    return seen


def layers_of_tokens():
    return nn.Sequential(
        nn.Linear(6, 20), nn.LayerNorm(20), nn.GELU(),
        nn.Linear(20, 24, bias=False), nn.ReLU(),
        nn.TransformerEncoderLayer(24, 3, 36, batch_first=True, norm_first=True, dropout=0.0),
        nn.Linear(24, 3),
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_linear_layers_score_as_the_reference(linear_calls, monkeypatch, criterion, pays, dtype):
    torch.manual_seed(5)
    model, x = layers_of_tokens().double().eval(), torch.randn(3, 43, 6, dtype=F64)
    masks = nets.random_masks(model, 0.2)
    expected = px.score(model, x, criterion=criterion, masks=masks)
    monkeypatch.setattr(ops, "sparse_dual_linear_pays", lambda *_: pays)
    scores = pxfast.score(model.to(dtype), x.to(dtype), criterion=criterion, masks=masks)
    assert bool(linear_calls) == (pays and criterion == "px")
    assert list(scores) == list(expected)
    for name, values in expected.items():
        close(scores[name], values, DEEP_NET[dtype], name)


def test_a_linear_network_scores_as_with_dense_layers(linear_calls, monkeypatch):
    """With the rule as it is, and two batches that meet the same masks."""
    torch.manual_seed(5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model = nn.Sequential(
        nn.Linear(8, 304), nn.ReLU(), nn.Linear(304, 304), nn.ReLU(), nn.Linear(304, 304),
        nn.GELU(), nn.Linear(304, 5),
    )  # fmt: skip
    batches, masks = list(torch.randn(2, 2, 130, 8)), nets.random_masks(model, 0.04)
    sparse = pxfast.score(model, batches, masks=masks)
    assert len(linear_calls) >= 4
    assert {tuple(weight.shape) for _, _, weight, *_ in linear_calls} == {(304, 304)}
    monkeypatch.setattr(ops, "sparse_dual_linear_pays", lambda *_: False)
    linear_calls.clear()
    dense = pxfast.score(model, batches, masks=masks)
    assert not linear_calls
    for name, values in dense.items():
        close(sparse[name], values, DEEP_NET[F32], name)


def test_linear_layers_stay_dense_where_a_pass_is_another(linear_calls, monkeypatch):
    """Under autocast, in the joint network, and where the path sum is constant."""
    monkeypatch.setattr(ops, "sparse_dual_linear_pays", lambda *_: True)
    model, x = layers_of_tokens().eval(), torch.randn(3, 43, 6)
    masks = nets.random_masks(model, 0.2)
    pxfast.score(model, x, masks=masks, dtype=torch.bfloat16)
    pxfast.score(model, x, masks=masks, criterion="px-joint")
    narrow = nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 24))  # one sum for all 20
    pxfast.score(narrow, x, masks={"1.weight": torch.rand(24, 20) < 0.2})
    assert not linear_calls
