"""Weights whose squares round to 0 are counted, whatever the parts that they are looked at in."""

from __future__ import annotations

import pytest
import torch

from pxfast.paths import underflow
from pxfast.paths.underflow import underflowed


@pytest.mark.parametrize("part", [1, 7, 2**20])
@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (13, 3), (4, 3, 2, 2), (3, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_count_is_that_of_all_at_once(
    part: int, shape: tuple[int, ...], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underflow, "PART", part)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(shape, generator=generator)
    theta[torch.rand(shape, generator=generator) < 0.3] = 1e-25  # whose square is 0
    theta[torch.rand(shape, generator=generator) < 0.3] = 0.0
    mask = torch.rand(shape, generator=generator) < 0.5 if masked else None
    kept = theta if mask is None else theta * mask
    expected = int(((kept != 0) & (kept.square() == 0)).sum())
    assert underflowed(theta, mask, torch.float32) == expected
    assert underflowed(theta, mask, torch.float64) == 0


def test_what_a_masked_weight_holds_does_not_count() -> None:
    theta = torch.tensor([1e-30, float("nan"), float("inf"), 1e-30, 2.0])
    mask = torch.tensor([False, False, False, True, True])
    assert underflowed(theta, mask, torch.float32) == 1


def test_weights_in_another_order_of_memory() -> None:
    theta = torch.full((4, 6, 3, 3), 1e-30).to(memory_format=torch.channels_last)
    theta[0] = 1.0
    assert underflowed(theta, None, torch.float32) == 3 * 6 * 9
    assert underflowed(theta.flatten(1).T, None, torch.float32) == 3 * 6 * 9
