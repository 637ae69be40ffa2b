"""score_histogram on every backend: order keys, counts, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from backends import Backend
from selecting import (
    DTYPES,
    assert_refused,
    count_alive,
    many_decades,
    op_module,
    search,
)

import pxfast.reference.select_threshold as reference
from pxfast.ops import Bins, Threshold, narrow


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
    least, most = op_module.key_range(dtype)
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
    assert_refused(backend, "score_histogram", *BAD[bad])


def test_bad_device():
    scores = [torch.ones(2, device="meta"), torch.ones(2)]
    with pytest.raises(ValueError, match=r"scores\[1\] must be on scores\[0\]'s device meta"):
        op_module._fake(scores, [None, None], 0, 0, 1)
    with pytest.raises(ValueError, match=r"alive\[0\] must be on scores\[0\]'s device meta"):
        op_module._fake(scores[:1], [torch.ones(2, dtype=BOOL)], 0, 0, 1)


def test_opcheck(device: torch.device):
    scores = [torch.rand(30, device=device), torch.rand(4, 5, device=device)]
    alive = [None, torch.rand(4, 5, device=device) < 0.5]
    for masks in (alive, [None, None]):
        torch.library.opcheck(torch.ops.pxfast.score_histogram, (scores, masks, 0, 10, 5))
