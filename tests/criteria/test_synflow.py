"""SynFlow and SynFlow-L2 against their formulas."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
from nets import NETS
from tolerances import SMALL_NET, close
from torch import nn

import pxfast
from pxfast.criteria import SynFlow, SynFlowL2

POWERS = {"synflow": 1, "synflow-l2": 2}
TOLERANCE = SMALL_NET[torch.float64]


def formula(model, shape, masks, power):
    """|θ| ∂R/∂|θ| / R on a copy of which every entry of the state is |·| (or squared)."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in masks:
                tensor.mul_(masks[name])
            tensor.abs_()
            if tensor.is_floating_point():
                tensor.pow_(power)
    flow = model(torch.ones(1, *shape, dtype=torch.float64)).sum()
    flow.backward()
    weights = {name: model.get_parameter(name) for name in nets.prunable_names(model)}
    return {name: (w.grad * w / flow).abs().detach() for name, w in weights.items()}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("criterion", POWERS)
def test_the_formula(net, criterion):
    model = net.build().double()
    masks = nets.random_masks(model, 0.5)
    for given in ({}, masks):
        scores = pxfast.score(model, torch.randn(3, *net.shape), criterion=criterion, masks=given)
        expected = formula(model, net.shape, given, POWERS[criterion])
        assert list(scores) == list(expected)
        for name, score in expected.items():
            close(scores[name], score, TOLERANCE, name)


@pytest.mark.parametrize("criterion", POWERS)
def test_the_product_of_matrices(criterion):
    """R = 1ᵀ |W₃| |W₂| |W₁| 1, and the score is the share of R that runs through a weight."""
    model = nets.mlp(bias=False).double()
    first, second, third = (p.detach().abs().pow(POWERS[criterion]) for p in model.parameters())
    scores = list(pxfast.score(model, torch.randn(2, 4), criterion=criterion).values())
    into = [torch.ones(4).double(), first.sum(1), second @ first.sum(1)]
    out = [third.sum(0) @ second, third.sum(0), torch.ones(3).double()]
    flow = (third @ second @ first).sum()
    for score, weight, before, after in zip(scores, (first, second, third), into, out, strict=True):
        close(score, weight * after[:, None] * before / flow, TOLERANCE)
        assert float(score.sum()) == pytest.approx(1, abs=1e-12)  # the paper's conservation law


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "concat", "depthwise"])
def test_l2_is_px_where_the_data_cancel(name):
    net = NETS[name]
    model = net.build(bias=False).double()
    data = torch.randn(3, *net.shape).double()
    scores = pxfast.score(model, data, criterion=SynFlowL2())
    expected = pxfast.score(model, data)
    assert expected.provenance["data_pass"].startswith("skipped")
    for weight, score in expected.items():
        close(scores[weight], score, TOLERANCE, weight)


def test_at_initialisation_batchnorm_is_the_identity():
    torch.manual_seed(0)
    model = pxfast.models.resnet20(in_channels=1)
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            plain.set_submodule(name, nn.Identity())
    data = torch.randn(2, 1, 8, 8)
    expected = pxfast.score(plain, data, criterion="synflow")
    for name, score in pxfast.score(model, data, criterion="synflow").items():
        close(score, expected[name], 1e-4, name)  # ε = 1e-5 in each of 21 BatchNorms, halved


def test_only_the_shape_of_the_data_counts():
    model = nets.conv()
    first = pxfast.score(model, torch.randn(3, 1, 5, 5), criterion="synflow")
    assert first == pxfast.score(model, [(torch.zeros(7, 1, 5, 5), None)], criterion="synflow")


def deep(gain):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8, bias=False) for _ in range(60)]
    for layer in layers:
        nn.init.uniform_(layer.weight, -gain, gain)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("criterion", POWERS)
def test_a_flow_beyond_float32_is_scored(criterion):
    data = torch.randn(1, 8)
    scores = pxfast.score(deep(20.0), data, criterion=criterion)
    assert scores.provenance["log2_R"] > 128 * 2  # float32 ends at 2^128
    expected = pxfast.score(deep(20.0 / 64), data, criterion=criterion)
    for name, score in expected.items():
        assert score.dtype == torch.float32
        close(scores[name], score, TOLERANCE + torch.finfo(torch.float32).eps, name)


def test_a_flow_beyond_float64_is_an_error():
    with pytest.raises(pxfast.errors.RangeError, match=r"synflow-l2: the flow .* float64"):
        pxfast.score(deep(1e4), torch.randn(1, 8), criterion="synflow-l2")


def test_no_path_is_an_error():
    model = nets.mlp(bias=False)
    with pytest.raises(pxfast.errors.RangeError, match="synflow: no path"):
        pxfast.score(
            model, torch.randn(1, 4), criterion=SynFlow(), masks={"2.weight": torch.zeros(4, 5)}
        )
