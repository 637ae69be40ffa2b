"""Range and precision of scores: depth, underflow, autocast."""

from __future__ import annotations

import math
import warnings
from typing import Any

import nets
import pytest
import torch
from scored import CRITERIA, assert_bit_equal, assert_same
from tolerances import SMALL_NET, close
from torch import nn

import pxfast
from pxfast import scoring
from pxfast.errors import RangeError
from pxfast.paths.passes import Passes

F32 = torch.float32


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 12.0])  # values end near 1e36
def test_depth_neither_overflows_nor_underflows(criterion, scale):
    layers = [nn.Sequential(nn.Linear(5, 5), nn.LeakyReLU(0.5)) for _ in range(60)]
    model = nets.seeded(lambda: nn.Sequential(nn.Linear(4, 5), *layers, nn.Linear(5, 3)), 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    x = nets.random_batch((4,), 3)
    masks = nets.random_masks(model, 0.6)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    for total in scores.totals().values():
        assert total == pytest.approx(1, abs=1e-4)
    if scale == 1:
        wide = pxfast.score(model.double(), x.double(), criterion=criterion, masks=masks)
        assert_same(scores, wide, 60 * SMALL_NET[F32])


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.a(x) + self.b(x))


def test_a_branch_that_underflows_is_an_error_and_an_empty_one_is_not():
    model = Branches()
    with torch.no_grad():
        model.b.weight.mul_(1e-25)
    with pytest.raises(RangeError, match=r"b\.weight underflow"):
        pxfast.score(model, torch.randn(3, 4))
    masks = {"b.weight": torch.zeros(4, 4)}
    scores = pxfast.score(model, torch.randn(3, 4), masks=masks)
    assert not scores["b.weight"].any()
    with torch.no_grad():
        model.b.weight.fill_(1)
        model.b.weight[0, 0] = 1e-25
    assert pxfast.score(model, torch.randn(3, 4)).provenance["underflowed"] == {"b.weight": 1}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_that_are_not_finite_are_an_error(criterion, wrong, monkeypatch):
    """Such as a rule of the user's can make them."""
    settle = Passes._settle

    def spoiled(self: Passes) -> None:
        settle(self)
        self.weights.saliency["4.weight"][0, 1] = wrong

    monkeypatch.setattr(Passes, "_settle", spoiled)
    with pytest.raises(RangeError, match=r"'4\.weight' has 1 NaN or infinite of \d+ scores"):
        pxfast.score(nets.mlp(), nets.random_batch((4,), 3), criterion=criterion)


def test_a_layer_without_weights_asks_for_no_second_pass(monkeypatch):
    """Its scores are 0 whatever the range is."""
    purposes = []
    kernel = Passes.kernel

    def noted(self: Passes, *arguments: Any) -> float:
        purposes.append(self.weights.purpose)
        return kernel(self, *arguments)

    monkeypatch.setattr(Passes, "kernel", noted)
    pxfast.score(Branches(), torch.ones(3, 4), masks={"b.weight": torch.zeros(4, 4)})
    assert purposes == ["scores"]


def test_dead_layers_behind_an_empty_one_are_not_underflow():
    model = nn.Sequential(
        nn.Linear(4, 4), nets.Sum(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Identity()),
        nn.Linear(4, 2),
    )  # fmt: skip
    masks = {"1.0.0.weight": torch.zeros(4, 4)}
    for criterion in CRITERIA:
        scores = pxfast.score(model, torch.randn(3, 4), masks=masks, criterion=criterion)
        assert not scores["1.0.1.weight"].any() and scores["2.weight"].any()


def test_log2_of_r_is_reported():
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    x = torch.ones(1, 3)
    assert pxfast.score(model, x).provenance["log2_R"] == pytest.approx(math.log2(14))
    joint = pxfast.score(model, x * 2, criterion="px-joint")
    assert joint.provenance["log2_R"] == pytest.approx(math.log2(4 * 14))


def test_autocast_rounds_gates_only(resnet, images):
    masks = nets.random_masks(resnet, 0.5)
    full = pxfast.score(resnet, images, masks=masks)
    half = pxfast.score(resnet, images, masks=masks, dtype=torch.bfloat16)
    assert all(score.dtype == F32 for score in half.values())
    for name in full:
        close(half[name], full[name], 0.05, name)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        skipped = pxfast.score(resnet, images)
    assert_bit_equal(skipped, pxfast.score(resnet, images))


def test_a_scorer_counts_underflow_under_every_mask_and_reads_exact_weights_once(monkeypatch):
    model = nets.mlp(seed=0)
    first, second, _ = (module.weight for module in model if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        first[0, :2] = 1e-30  # their squares round to 0 in float32
    masks = {name: torch.ones_like(p).bool() for name, p in model.named_parameters() if p.dim() > 1}
    for mask in masks.values():
        mask[1, 1] = False
    read: list[torch.Tensor] = []
    count = scoring.underflowed

    def spy(theta: torch.Tensor, *rest: Any) -> int:
        read.append(theta)
        return count(theta, *rest)

    monkeypatch.setattr(scoring, "underflowed", spy)
    scorer = scoring.Scorer(model, nets.random_batch((4,), 3))
    assert scorer(masks).provenance["underflowed"] == {"0.weight": 2}
    masks["0.weight"][0, 0] = False
    assert scorer(masks).provenance["underflowed"] == {"0.weight": 1}
    seen = [tensor.data_ptr() for tensor in read]
    assert seen.count(first.data_ptr()) == 2 and seen.count(second.data_ptr()) == 1
    with torch.no_grad():
        second[0, 0] = 1e-30  # as training may do between two scores
    assert scorer(masks).provenance["underflowed"] == {"0.weight": 1, "2.weight": 1}
