"""Batches run in parts that suit the caches, and what must not change by it."""

from __future__ import annotations

import nets
import pytest
import torch
from scored import assert_same
from tolerances import DEEP_NET
from torch import nn

import pxfast
from pxfast import models
from pxfast.paths import passes
from pxfast.paths.rules import linear
from pxfast.reference import px as reference

F32, F64 = torch.float32, torch.float64


@pytest.fixture
def single_samples(monkeypatch):
    """Parts of one sample, however small the model."""
    cut_to_single_samples(monkeypatch)


def cut_to_single_samples(monkeypatch):
    monkeypatch.setattr(passes, "SMALL_BATCH", 0)
    for kind in ("", "JOINT_"):
        monkeypatch.setattr(passes, f"{kind}PART_BYTES", 0)
        monkeypatch.setattr(passes, f"{kind}PART_WEIGHTS", 1e-9)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_a_batch_runs_in_parts_that_suit_the_caches(criterion, monkeypatch):
    torch.manual_seed(3)
    resnet, images = models.resnet20().eval(), torch.randn(5, 3, 16, 16)
    sizes = []
    forward = type(resnet).forward
    monkeypatch.setattr(
        type(resnet), "forward", lambda self, x: sizes.append(x.shape[0]) or forward(self, x)
    )
    masks = nets.random_masks(resnet, 0.5)
    whole = pxfast.score(resnet, images, criterion=criterion, masks=masks)
    assert max(sizes) == len(images)
    sizes.clear()
    cut_to_single_samples(monkeypatch)
    parts = pxfast.score(resnet, images, criterion=criterion, masks=masks)
    assert set(sizes) == {1}
    assert_same(parts, whole, DEEP_NET[F32])


@pytest.mark.usefixtures("single_samples")
def test_samples_that_meet_in_statistics_stay_together():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 2),
    )  # fmt: skip
    masks = nets.random_masks(model, 0.5)
    x = torch.randn(6, 1, 4, 4)
    expected = reference.score(model.double(), x.double(), masks=masks)
    for given in (None, 10**6):
        scores = pxfast.score(model.double(), x.double(), masks=masks, max_memory=given)
        assert_same(scores, expected, DEEP_NET[F64])


@pytest.mark.parametrize("masked_bytes", [0, 4 * 20 * 3, 4 * 20 * 7])
def test_wide_layers_are_masked_a_few_rows_at_a_time(monkeypatch, masked_bytes):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 7)).double()
    masks, x = nets.random_masks(model, 0.5), torch.randn(5, 9, dtype=F64)
    monkeypatch.setattr(linear, "MASKED_BYTES", masked_bytes)
    expected = reference.score(model, x, masks=masks)
    assert_same(pxfast.score(model, x, masks=masks), expected, DEEP_NET[F64])
