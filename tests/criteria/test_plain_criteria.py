"""Random and magnitude scores."""

from __future__ import annotations

import nets
import pytest
import torch

import pxfast
from pxfast.criteria import Random


def test_magnitude():
    model = nets.conv()
    masks = nets.random_masks(model, 0.5)
    scores = pxfast.score(model, None, criterion="magnitude", masks=masks)
    assert list(scores) == nets.prunable_names(model)
    for name, score in scores.items():
        assert torch.equal(score, model.get_parameter(name).abs() * masks[name])


def test_magnitude_by_layers():
    model, data = nets.conv(), torch.randn(2, 1, 5, 5)
    masks = pxfast.prune(model, data, density=0.5, rounds=1, criterion="magnitude", scope="layer")
    for name, mask in masks.items():
        weight = model.get_parameter(name).abs()
        assert int(mask.sum()) == round(0.5 * mask.numel())
        assert weight[mask].min() >= weight[~mask].max()


def test_random_scores_are_uniform_and_seeded():
    model = torch.nn.Linear(300, 300)
    scores = pxfast.score(model, None, criterion="random")["weight"]
    assert scores.min() >= 0 and scores.max() < 1
    for quantile in (0.1, 0.5, 0.9):  # binomial: 4 · sqrt(0.25 / 90000)
        assert float((scores < quantile).float().mean()) == pytest.approx(quantile, abs=0.007)
    torch.manual_seed(99)
    assert torch.equal(scores, pxfast.score(model, None, criterion=Random(seed=0))["weight"])
    assert not torch.equal(scores, pxfast.score(model, None, criterion=Random(seed=1))["weight"])


def test_random_masks_do_not_depend_on_the_number_of_rounds():
    model, data = nets.conv(), torch.randn(2, 1, 5, 5)
    once = pxfast.prune(model, data, density=0.2, rounds=1, criterion="random")
    assert pxfast.prune(model, data, density=0.2, rounds=5, criterion="random") == once
