"""The data pass takes path sums through the bits of masks where that is faster."""

from __future__ import annotations

import importlib

import nets
import pytest
import torch
from backends import need
from tolerances import DEEP_NET, close
from torch import nn

import pxfast
from pxfast import _native, ops
from pxfast.paths.weight import Weight
from pxfast.reference import px

F32, F64 = torch.float32, torch.float64


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits pay in layers of any size."""
    need("cpu", _native.problem)
    monkeypatch.setattr(importlib.import_module("pxfast.ops.masked_ones"), "_FEWEST_OUTPUTS", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each op runs."""
    seen = {"masked_ones_linear": 0, "masked_ones_conv2d": 0, "pack_ones": 0}

    def counting(name: str, original):
        def recorded(*args, **kwargs):
            seen[name] += 1
            return original(*args, **kwargs)

        return recorded

    for name in seen:
        monkeypatch.setattr(ops, name, counting(name, getattr(ops, name)))
    return seen


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 8, (3, 1), stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.GELU(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_scores_of_convolutions_are_those_of_the_reference(calls, dtype, memory):
    torch.manual_seed(5)
    x = torch.randn(3, 2, 12, 11, dtype=F64)
    model = convolutions().double()
    model(x)
    model.eval()
    masks = nets.random_masks(model, 0.7)
    expected = px.score(model, x, masks=masks)
    x = x.to(dtype, memory_format=memory)
    scores = pxfast.score(model.to(dtype, memory_format=memory), x, masks=masks)
    assert calls == {"masked_ones_linear": 2, "masked_ones_conv2d": 4, "pack_ones": 6}
    for name, score in expected.items():
        close(scores[name], score, DEEP_NET[dtype], name)


def test_layers_that_torch_serves_still_are_right(calls):
    torch.manual_seed(5)
    x = torch.randn(3, 2, 12, dtype=F64)
    model = nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.LazyLinear(3),
    ).double()  # fmt: skip
    model(x)
    masks = nets.random_masks(model, 0.7)
    expected = px.score(model, x, masks=masks)
    scores = pxfast.score(model, x, masks=masks)
    assert calls["masked_ones_conv2d"] == 0
    for name, score in expected.items():
        close(scores[name], score, DEEP_NET[F64], name)


def test_only_bits_stay_while_a_batch_runs_in_parts(calls, monkeypatch):
    """Parts share the bits, and no mask that is larger is kept."""
    torch.manual_seed(5)
    model, x = convolutions(), torch.randn(8, 2, 8, 6)
    model(x)
    model.eval()
    masks = nets.random_masks(model, 0.7)
    once, kept = Weight._once, []

    def noting(self, what, make):
        made = once(self, what, make)
        if what == "M":
            kept.append(made)
        return made

    monkeypatch.setattr(Weight, "_once", noting)
    whole = pxfast.score(model, x, masks=masks)
    assert calls["pack_ones"] == len(kept) == 6
    parts = pxfast.score(model, x, masks=masks, max_memory=20_000)
    assert len(kept) >= 8 * 6 > 2 * calls["pack_ones"]
    assert all(made.dtype == torch.int32 for made in kept)
    for name in whole:
        close(parts[name], whole[name], DEEP_NET[F32], name)
