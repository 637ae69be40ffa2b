"""write_masks on every backend: the scores above a key, and the first of those that equal it."""

from __future__ import annotations

import math

import pytest
import torch
from backends import Backend
from selecting import (
    DTYPES,
    Masks,
    assert_refused,
    assert_same,
    by_stable_sort,
    many_decades,
    select,
    write,
)
from torch import Tensor

import pxfast.reference.select_threshold as keys_of
from pxfast.ops import Threshold, select_threshold, write_masks

HALF, BOOL = torch.float16, torch.bool


def by_definition(
    scores: list[Tensor], alive: Masks, value: float, ties: int
) -> tuple[list[Tensor], int]:
    """Score by score; and how many equal the value."""
    masks, equal = [], 0
    for score, mask in zip(scores, alive, strict=True):
        lives = [True] * score.numel() if mask is None else mask.flatten().tolist()
        kept = []
        for number, alive_here in zip(score.double().flatten().tolist(), lives, strict=True):
            tied = alive_here and number == value
            kept.append(alive_here and (number > value or (tied and equal < ties)))
            equal += tied
        masks.append(torch.tensor(kept, dtype=torch.bool).view(score.shape))
    return masks, equal


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_values(backend: Backend, dtype: torch.dtype, masked: bool):
    """Ties over several chunks: 65,536 scores on the CPU, 16,384 on CUDA."""
    sizes = [[0, 1, 7, 0, 33, 1000, 3, 0], [3, 20_000, 0, 30_011]]
    for n in [*sizes, [70_000, 66_000]] if backend.device == "cpu" else sizes:
        scores, alive = many_decades(n, dtype, masked)
        for value in (0.0, 1.0, -3.0):
            key = int(keys_of.order_keys(torch.tensor(value, dtype=dtype)))
            equal = by_definition(scores, alive, value, 0)[1]
            for ties in sorted({0, 1, equal // 3, equal - 1, equal} & set(range(equal + 1))):
                got = write(backend, scores, Threshold(key, ties, equal, dtype), alive)
                assert_same(got, by_definition(scores, alive, value, ties)[0])


def test_threads_do_not_change_masks(backend: Backend):
    if backend.device != "cpu":
        return
    scores = [torch.randint(0, 3, (n,)).float() for n in (150_000, 1, 99_999)]
    alive: Masks = [None, None, torch.rand(99_999) < 0.5]
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(select(backend, scores, 100_000, alive))
    finally:
        torch.set_num_threads(threads)
    assert_same(results[0], by_stable_sort(scores, 100_000, alive))
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_masked_scores_never_return(backend: Backend, junk: float):
    for dtype in DTYPES:
        score = torch.zeros(3000, dtype=dtype)
        alive = torch.rand(3000) < 0.5
        score[~alive] = junk
        count = int(alive.sum())
        for keep in (1, count // 2, count):
            assert_same(select(backend, [score], keep, [alive]), by_first(alive, keep))


def by_first(alive: Tensor, keep: int) -> list[Tensor]:
    return [alive & (alive.cumsum(0) <= keep)]


def test_alive_weights_come_before_masked_ones_also_at_score_0(backend: Backend):
    scores = [torch.tensor([5.0, 0.0, 0.0]), torch.tensor([0.0, 7.0])]
    alive: Masks = [torch.tensor([False, True, True]), torch.tensor([True, False])]
    masks = select(backend, scores, 2, alive)
    assert [mask.tolist() for mask in masks] == [[False, True, True], [False, False]]


def test_ties_go_to_the_earlier_tensor(backend: Backend):
    scores = [torch.tensor([1.0, 5.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0])]
    masks = select(backend, scores, 3)
    assert [mask.tolist() for mask in masks] == [[True, True], [True, False], [False]]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_zeros_of_both_signs_tie(backend: Backend, dtype: torch.dtype):
    score = torch.tensor([-1.0, -0.0, 0.0, -0.0], dtype=dtype)
    assert select(backend, [score], 2)[0].tolist() == [False, True, True, False]


def test_denormals_are_not_zeros(backend: Backend):
    for dtype in DTYPES:
        tiny = torch.tensor(1, dtype=keys_of.INTEGERS[dtype.itemsize]).view(dtype)
        score = torch.stack([torch.zeros_like(tiny), tiny, -tiny, tiny])
        assert select(backend, [score], 2)[0].tolist() == [False, True, False, True]


def test_position_is_the_logical_one_in_any_memory_format(device: torch.device):
    score = torch.zeros(2, 3, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    mask = write_masks([score], select_threshold([score], 5))[0]
    assert mask.is_contiguous() and mask.device == score.device
    assert mask.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    transposed = torch.zeros(4, 3, device=device).T
    mask = write_masks([transposed], select_threshold([transposed], 5))[0]
    assert mask.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("which", ["score", "alive"])
def test_strides_and_shapes(backend: Backend, which: str):
    if backend.device == "emulated":
        return  # it takes what the binding makes contiguous
    score, alive = torch.rand(30, 20), torch.rand(30, 20) < 0.7
    expected = by_stable_sort([score], 100, [alive])
    if which == "score":
        score = score.T.contiguous().T
    else:
        alive = alive.repeat_interleave(2, 1)[:, ::2]
    assert_same(select(backend, [score], 100, [alive]), expected)
    single = [torch.tensor(3.0), torch.tensor(4.0)]
    assert [mask.tolist() for mask in select(backend, single, 1)] == [False, True]


def test_what_lies_around_the_scores_does_not_matter(backend: Backend):
    for dtype in DTYPES:
        for offset in (1, 3, 8):
            memory = torch.full((3100,), math.nan, dtype=dtype)
            living = torch.ones(3100, dtype=torch.bool)
            score, alive = memory[offset : offset + 3000], living[offset : offset + 3000]
            score.copy_(torch.randint(0, 9, (3000,)))
            alive.copy_(torch.rand(3000) < 0.8)
            assert_same(
                select(backend, [score, score], 999, [alive, None]),
                by_stable_sort([score, score], 999, [alive, None]),
            )
            assert memory[:offset].isnan().all() and memory[offset + 3000 :].isnan().all()


def test_no_scores():
    assert write_masks([], Threshold(0, 0, 0, torch.float32)) == []


# ---- bad input


BAD = {
    "no tensor": (([], [], 0, 0, 0), "scores must hold at least one tensor"),
    "too many masks": (
        ([torch.ones(2)], [None, None], 0, 0, 0),
        "alive must hold one entry for each of the 1 scores, got 2",
    ),
    "two dtypes": (
        ([torch.ones(2, dtype=HALF), torch.ones(2)], [None, None], 0, 0, 0),
        "scores[1] must be float16 as scores[0] is, got float32",
    ),
    "shape": (
        ([torch.ones(2, 3)], [torch.ones(6, dtype=BOOL)], 0, 0, 0),
        "alive[0] must have the shape [2, 3] of scores[0], got [6]",
    ),
    "negative ties": (
        ([torch.ones(2)], [None], 0, -1, 2),
        "ties must be in 0..2 (equal), got -1",
    ),
    "too many ties": (
        ([torch.ones(2)], [None], 0, 3, 2),
        "ties must be in 0..2 (equal), got 3",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gives_the_same_error_everywhere(backend: Backend, bad: str):
    if backend.device == "emulated":
        return  # checks are the binding's, which it goes around
    assert_refused(backend, "write_masks", *BAD[bad])


def test_opcheck(device: torch.device):
    scores = [torch.rand(30, device=device), torch.rand(4, 5, device=device)]
    alive = [None, torch.rand(4, 5, device=device) < 0.5]
    for masks in (alive, [None, None]):
        torch.library.opcheck(torch.ops.pxfast.write_masks, (scores, masks, 100, 0, 0))
