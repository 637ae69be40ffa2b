"""The search for the threshold reads large scores few times, also where a sample misleads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from selecting import (
    DTYPES,
    Masks,
    assert_same,
    by_stable_sort,
    count_alive,
    many_decades,
    op_module,
)
from torch import Tensor

import pxfast.reference.select_threshold as reference
from pxfast.ops import Bins, score_histogram, select_threshold, write_masks


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Bins]:
    """Small inputs count as large ones; every read of the scores is noted."""
    noted: list[Bins] = []

    def counted(scores: list[Tensor], alive: Masks, bins: Bins) -> Tensor:
        noted.append(bins)
        return score_histogram(scores, alive, bins)

    monkeypatch.setattr(op_module, "SAMPLED", 1000)
    monkeypatch.setattr(op_module, "SAMPLE", 1 << 10)
    monkeypatch.setattr(op_module, "score_histogram", counted)
    return noted


SHAPES: dict[str, Callable[[int], Tensor]] = {
    "spread": lambda n: many_decades([n], torch.float64, masked=False)[0][0],
    "equal": lambda n: torch.full((n,), 0.3, dtype=torch.float64),
    "zeros": lambda n: torch.rand(n, dtype=torch.float64) * (torch.arange(n) % 7 == 0),
    "two values": lambda n: (torch.arange(n) % 3 == 0).double(),
    "neighbours": lambda n: 1 + torch.arange(n, dtype=torch.float64).flip(0) * 2.0**-22,
    "far apart": lambda n: torch.where(torch.arange(n) % 2 == 0, 2.0**-20, 2.0**15).double(),
    "sorted": lambda n: torch.linspace(0, 1, n, dtype=torch.float64) ** 9,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_three_reads_at_most(reads: list[Bins], dtype: torch.dtype, shape: str):
    flat = SHAPES[shape](20_000).to(dtype)
    scores = list(flat.split([3000, 12_000, 1, 4999]))
    alive: Masks = [torch.rand(3000) < 0.5, None, None, torch.rand(4999) < 0.5]
    for keep in (1, 40, 400, 8000, count_alive(scores, alive)):
        reads.clear()
        threshold = select_threshold(scores, keep, alive)
        masks = write_masks(scores, threshold, alive)
        assert_same(masks, by_stable_sort(scores, keep, alive))
        assert len(reads) <= (3 if dtype != torch.float64 else 6)
        assert all(bins.bits == op_module.NARROW_BITS for bins in reads)  # every thread counts


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("keep", [1, 9999, 20_000])
def test_two_reads_as_a_rule(reads: list[Bins], dtype: torch.dtype, keep: int):
    draw = torch.Generator().manual_seed(0)
    score = torch.empty(20_000, dtype=torch.float64).log_normal_(0, 2, generator=draw).to(dtype)
    select_threshold([score], keep)
    assert len(reads) <= 2


@pytest.mark.parametrize("lie", [-1e30, -1e-30, 0.0, 1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_a_sample_that_misleads_costs_one_read(
    reads: list[Bins], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, lie: float
):
    key = reference.order_keys(torch.tensor([lie], dtype=dtype)).long()
    monkeypatch.setattr(op_module, "_sample", lambda *_: key.expand(1 << 10).clone())
    scores = [many_decades([20_000], dtype, masked=False)[0][0]]
    for keep in (1, 5000, 15_000, 20_000):
        reads.clear()
        masks = write_masks(scores, select_threshold(scores, keep))
        assert_same(masks, by_stable_sort(scores, keep))
        assert len(reads) <= (3 if dtype == torch.float32 else 5)


def test_a_sample_is_spread_over_all_tensors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(op_module, "SAMPLE", 1 << 10)
    scores = [torch.full((n,), float(i)) for i, n in enumerate([50_000, 0, 30_000, 1, 20_000])]
    alive: Masks = [None, None, torch.arange(30_000) % 2 == 0, None, None]
    keys = op_module._sample(scores, alive, 100_001)
    values, counts = keys.unique(return_counts=True)
    wanted = reference.order_keys(torch.tensor([0.0, 2.0, 4.0])).long()
    assert torch.equal(values, wanted)
    assert (counts.double() / 1024 - torch.tensor([0.5, 0.15, 0.2])).abs().max() < 0.01


def test_columns_of_different_size_do_not_mislead_the_sample(reads: list[Bins]):
    columns = 10.0 ** torch.linspace(-6, 6, 64)
    for rows in (512, 500, 1024):
        score = (torch.rand(rows, 64) + 0.5) * columns
        reads.clear()
        keep = rows * 64 // 10
        masks = write_masks([score], select_threshold([score], keep))
        assert_same(masks, by_stable_sort([score], keep))
        assert len(reads) <= 2


def test_little_memory_is_taken():
    scores = [torch.rand(1_500_000), torch.rand(500, 1000)]
    with torch.profiler.profile(profile_memory=True) as profile:
        select_threshold(scores, 100_000)
    taken, most = 0, 0
    for event in sorted(profile.events(), key=lambda event: event.time_range.start):
        if event.name == "[memory]":
            taken += event.cpu_memory_usage
            most = max(most, taken)
    assert 0 < most < 1e6
