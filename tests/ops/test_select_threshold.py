"""score_histogram on every backend, and the search for the threshold: exact, in few reads."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
import torch
from backends import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from selecting import (
    DTYPES,
    Masks,
    assert_same,
    by_stable_sort,
    count_alive,
    many_decades,
    search,
    select,
    selections,
)
from torch import Tensor

import pxfast.reference.select_threshold as reference
from pxfast.errors import RangeError
from pxfast.ops import Bins, Threshold, narrow, score_histogram, select_threshold, write_masks

module = sys.modules[select_threshold.__module__]  # its attribute in pxfast.ops is the function
ANY = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# ---- keys and counts


def test_keys_order_all_numbers_of_16_bits():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        values = bits.view(dtype)
        ordered = values[torch.isfinite(values)].float().sort(stable=True).values
        for wide in (torch.float32, torch.float64, dtype):
            keys = reference.order_keys(ordered.to(wide)).long()
            assert torch.equal(keys.diff() > 0, ordered.diff() > 0)
            assert torch.equal(keys.diff() == 0, ordered.diff() == 0)  # only -0.0 and 0.0


def bins_of(dtype: torch.dtype) -> list[Bins]:
    """Intervals of all keys, around numbers, of single keys, of negative ones, at both ends."""
    least, most = module.key_range(dtype)
    one = int(reference.order_keys(torch.tensor(1.0, dtype=dtype)))
    width = 8 * dtype.itemsize
    return [
        Bins.whole(dtype),
        Bins.covering(least, least + 9, 4, dtype),
        Bins.covering(most - 9, most, 4, dtype),
        Bins.covering(7 * one // 8, 9 * one // 8, 12, dtype),
        Bins.covering(-9 * one // 8, -7 * one // 8, 12, dtype),
        Bins.covering(-one // 2, one, 6, dtype),
        Bins(one, 0, 1, dtype),
        Bins(-(1 << (width - 1)), width - 1, 1, dtype),
    ]


SIZES = [[0, 1, 7, 0, 33, 1000, 3, 0], [2048, 2047, 64], [5, 16_383, 2011, 0]]


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_counts(backend: Backend, dtype: torch.dtype, masked: bool):
    for sizes in SIZES:
        scores, alive = many_decades(sizes, dtype, masked)
        keys = [reference.living_keys(s, m) for s, m in zip(scores, alive, strict=True)]
        numbers = torch.cat(keys).tolist()  # Python's integers have no limit
        for bins in bins_of(dtype):
            size = 1 << bins.bits
            places = [min((key - bins.low) >> bins.shift, size) for key in numbers]
            expected = torch.bincount(
                torch.tensor([size + 1 if place < 0 else place for place in places]),
                minlength=size + 3,
            )
            counts = backend("score_histogram", scores, alive, bins.low, bins.shift, bins.bits)
            assert torch.equal(counts, expected), bins


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_counts_reveal_what_is_not_finite(backend: Backend, dtype: torch.dtype):
    for place in (0, 2046, 2047, 2999):
        for bad in (math.inf, -math.inf, math.nan, -math.nan):
            score, mask = torch.rand(3000).to(dtype), torch.rand(3000) < 0.5
            score[place] = bad
            mask[place] = True
            for bins in bins_of(dtype):
                where = bins.low, bins.shift, bins.bits
                assert int(backend("score_histogram", [score], [None], *where)[-1]) == 1
                assert int(backend("score_histogram", [score], [mask], *where)[-1]) == 1
                mask[place] = False
                assert int(backend("score_histogram", [score], [mask], *where)[-1]) == 0
                mask[place] = True
    score = torch.full((5000,), math.nan, dtype=dtype)
    bins = Bins.whole(dtype)
    counts = backend("score_histogram", [score], [None], bins.low, bins.shift, bins.bits)
    assert int(counts[-1]) == 5000


def test_counts_of_parts_add_up(backend: Backend):
    """Ranks may count their own scores and add: the counts are those of all scores."""
    scores, alive = many_decades([700, 1300, 900], torch.float32, masked=True)
    keep = 777
    step: Bins | Threshold = Bins.whole(torch.float32)
    while isinstance(step, Bins):
        where = step.low, step.shift, step.bits
        counts = backend("score_histogram", scores[:1], alive[:1], *where)
        counts = counts + backend("score_histogram", scores[1:], alive[1:], *where)
        assert torch.equal(counts, backend("score_histogram", scores, alive, *where))
        step = narrow(counts, step, keep)
    assert step == search(backend, scores, keep, alive)[0]


def test_threads_do_not_change_counts(backend: Backend):
    if backend.device != "cpu":
        return
    scores, alive = many_decades([90_000, 70_000, 11], torch.float32, masked=True)
    bins = Bins.covering(-(2**30), 2**30, 12, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 40):
            torch.set_num_threads(n)
            where = bins.low, bins.shift, bins.bits
            results.append(backend("score_histogram", scores, alive, *where))
    finally:
        torch.set_num_threads(threads)
    assert int(results[0][:-1].sum()) == count_alive(scores, alive)
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_lies_around_the_scores_is_not_counted(backend: Backend):
    for dtype in DTYPES:
        for offset in (1, 3, 8):
            memory = torch.full((3100,), math.nan, dtype=dtype)
            living = torch.ones(3100, dtype=torch.bool)
            score, mask = memory[offset : offset + 3000], living[offset : offset + 3000]
            score.copy_(torch.rand(3000))
            bins = Bins.whole(dtype)
            for alive in (None, mask):
                counts = backend("score_histogram", [score], [alive], bins.low, bins.shift, 16)
                assert int(counts[-1]) == 0 and int(counts.sum()) == 3000


# ---- the search


@ANY
@given(selections())
def test_equals_a_stable_sort(backend: Backend, case: tuple[list[Tensor], int, Masks]):
    scores, keep, alive = case
    got = select(backend, scores, keep, alive)
    assert sum(int(mask.sum()) for mask in got) == keep
    assert_same(got, by_stable_sort(scores, keep, alive))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("keep", [1, 2, 777, 2999, 3000])
def test_random_scores_of_a_wide_range(backend: Backend, dtype: torch.dtype, keep: int):
    scores, _ = many_decades([1000, 1, 1999], dtype, masked=False, seed=keep)
    assert_same(select(backend, scores, keep), by_stable_sort(scores, keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbouring_floats_are_told_apart(backend: Backend, dtype: torch.dtype):
    for start in (1.0, 0.0, torch.finfo(dtype).tiny, -3.5):
        steps = [torch.tensor(start, dtype=dtype)]
        for _ in range(9):
            steps.append(torch.nextafter(steps[-1], torch.tensor(math.inf, dtype=dtype)))
        scores = [torch.stack(steps)[torch.randperm(10)]]
        for keep in range(1, 11):
            assert_same(select(backend, scores, keep), by_stable_sort(scores, keep))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_the_largest_finite_score_is_accepted(dtype: torch.dtype):
    info = torch.finfo(dtype)
    scores = [torch.tensor([info.min, info.max], dtype=dtype)]
    masks = write_masks(scores, select_threshold(scores, 1))
    assert masks[0].tolist() == [False, True]


def test_mixed_dtypes_compare_by_value():
    scores = [
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16),
        torch.tensor([1 + 1e-12, 0.25], dtype=torch.float64),
    ]
    masks = write_masks(scores, select_threshold(scores, 1))
    assert [mask.tolist() for mask in masks] == [[False, False], [True, False]]


def test_scores_are_left_as_they_are():
    score = torch.randn(50)
    before, alive = score.clone(), torch.rand(50) < 0.5
    kept_alive = alive.clone()
    write_masks([score], select_threshold([score], 3, [alive]), [alive])
    assert torch.equal(score, before)
    assert torch.equal(alive, kept_alive)


# ---- few reads, also where a sample misleads


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Bins]:
    """Small inputs count as large ones; every read of the scores is noted."""
    noted: list[Bins] = []

    def counted(scores: list[Tensor], alive: Masks, bins: Bins) -> Tensor:
        noted.append(bins)
        return score_histogram(scores, alive, bins)

    monkeypatch.setattr(module, "SAMPLED", 1000)
    monkeypatch.setattr(module, "SAMPLE", 1 << 10)
    monkeypatch.setattr(module, "score_histogram", counted)
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
        assert all(bins.bits == module.NARROW_BITS for bins in reads)  # every thread counts


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
    monkeypatch.setattr(module, "_sample", lambda *_: key.expand(1 << 10).clone())
    scores = [many_decades([20_000], dtype, masked=False)[0][0]]
    for keep in (1, 5000, 15_000, 20_000):
        reads.clear()
        masks = write_masks(scores, select_threshold(scores, keep))
        assert_same(masks, by_stable_sort(scores, keep))
        assert len(reads) <= (3 if dtype == torch.float32 else 5)


def test_a_sample_is_spread_over_all_tensors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SAMPLE", 1 << 10)
    scores = [torch.full((n,), float(i)) for i, n in enumerate([50_000, 0, 30_000, 1, 20_000])]
    alive: Masks = [None, None, torch.arange(30_000) % 2 == 0, None, None]
    keys = module._sample(scores, alive, 100_001)
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


# ---- bad input


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, -math.nan])
def test_non_finite_scores_are_refused(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bad: float, large: bool
):
    if large:
        monkeypatch.setattr(module, "SAMPLED", 3)
    scores = [torch.ones(3, dtype=dtype), torch.tensor([1.0, bad], dtype=dtype)]
    with pytest.raises(RangeError, match=r"scores\[1\] holds 1 NaN or infinite of 2 scores"):
        select_threshold(scores, 2)
    with pytest.raises(RangeError, match=r"'fc.weight' holds 1 NaN or infinite of 2 scores"):
        select_threshold(scores, 2, names=["conv.weight", "fc.weight"])
    dead = torch.tensor([True, False])
    masks = write_masks(scores, select_threshold(scores, 4, [None, dead]), [None, dead])
    assert [mask.tolist() for mask in masks] == [[True] * 3, [True, False]]


@pytest.mark.parametrize("keep", [0, -1, 5])
@pytest.mark.parametrize("large", [False, True])
def test_keep_out_of_range(monkeypatch: pytest.MonkeyPatch, keep: int, large: bool):
    if large:
        monkeypatch.setattr(module, "SAMPLED", 0)
    with pytest.raises(ValueError, match=rf"1\.\.4 .* got {keep}"):
        select_threshold([torch.ones(5)], keep, [torch.arange(5) > 0])


def test_no_scores():
    with pytest.raises(ValueError, match=r"1\.\.0 .* got 1"):
        select_threshold([], 1)
    with pytest.raises(ValueError, match=r"1\.\.0 .* got 1"):
        select_threshold([torch.ones(0)], 1)


def test_integer_scores_are_refused():
    with pytest.raises(TypeError, match="int64"):
        select_threshold([torch.arange(4)], 1)


HALF, BOOL = torch.float16, torch.bool
BAD = {
    "no tensor": (([], [], 0, 0, 1), "scores must hold at least one tensor"),
    "too few masks": (
        ([torch.ones(2)], [], 0, 0, 1),
        "alive must hold one entry for each of the 1 scores, got 0",
    ),
    "integers": (
        ([torch.ones(2, dtype=torch.int32)], [None], 0, 0, 1),
        "scores must be float32, float64, bfloat16 or float16, got int32",
    ),
    "two dtypes": (
        ([torch.ones(2), torch.ones(2, dtype=HALF)], [None, None], 0, 0, 1),
        "scores[1] must be float32 as scores[0] is, got float16",
    ),
    "shape": (
        ([torch.ones(2), torch.ones(2, 3)], [None, torch.ones(3, 2, dtype=BOOL)], 0, 0, 1),
        "alive[1] must have the shape [2, 3] of scores[1], got [3, 2]",
    ),
    "mask": (([torch.ones(2)], [torch.ones(2)], 0, 0, 1), "alive[0] must be bool, got float32"),
    "no bits": (([torch.ones(2)], [None], 0, 0, 0), "bits must be in 1..16, got 0"),
    "bits": (([torch.ones(2)], [None], 0, 0, 17), "bits must be in 1..16, got 17"),
    "shift": (
        ([torch.ones(2)], [None], 0, 31, 2),
        "shift must be in 0..30 for 2 bits of float32, got 31",
    ),
    "low": (
        ([torch.ones(2)], [None], 6, 2, 2),
        "low must be a multiple of 2^shift = 4, got 6",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gives_the_same_error_everywhere(backend: Backend, bad: str):
    if backend.device == "emulated":
        return  # checks are the binding's, which it goes around
    arguments, message = BAD[bad]
    if bad != "no tensor":  # which no device is found for
        with pytest.raises(ValueError) as error:
            backend("score_histogram", *arguments)
        assert str(error.value) == f"score_histogram: {message}"
    with pytest.raises(ValueError) as error:
        module._fake(*arguments)
    assert str(error.value) == f"score_histogram: {message}"


def test_bad_device():
    scores = [torch.ones(2, device="meta"), torch.ones(2)]
    with pytest.raises(ValueError, match=r"scores\[1\] must be on scores\[0\]'s device meta"):
        module._fake(scores, [None, None], 0, 0, 1)
    with pytest.raises(ValueError, match=r"alive\[0\] must be on scores\[0\]'s device meta"):
        module._fake(scores[:1], [torch.ones(2, dtype=BOOL)], 0, 0, 1)


# ---- as an op of torch


def test_opcheck(device: torch.device):
    scores = [torch.rand(30, device=device), torch.rand(4, 5, device=device)]
    alive = [None, torch.rand(4, 5, device=device) < 0.5]
    for masks in (alive, [None, None]):
        torch.library.opcheck(torch.ops.pxfast.score_histogram, (scores, masks, 0, 10, 5))


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


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), keep=st.integers(1, 400))
def test_ranks_keep_what_one_keeps(seed: int, keep: int):
    """Each rank writes its own masks, with its share of the ties, and all together are one's."""
    scores, alive = many_decades([150, 250], torch.bfloat16, masked=False, seed=seed)
    threshold = select_threshold(scores, keep)
    left, masks = threshold.ties, []
    for score in scores:
        own = int((reference.order_keys(score) == threshold.key).sum()) if left else 0
        share = type(threshold)(threshold.key, min(left, own), own, threshold.dtype)
        masks += write_masks([score], share)
        left -= share.ties
    assert_same(masks, by_stable_sort(scores, keep, alive))
