"""Exact selection against a stable sort."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pxfast.errors import RangeError
from pxfast.selection.threshold import digit_counts, order_keys, select_threshold, write_masks

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def select(scores: list[Tensor], keep: int, alive: list[Tensor | None] | None = None):
    return write_masks(scores, select_threshold(scores, keep, alive), alive)


def by_stable_sort(
    scores: list[Tensor], keep: int, alive: list[Tensor | None] | None = None
) -> list[Tensor]:
    """The definition: sort by falling score, equal scores by position, and keep the first."""
    flat = [value for score in scores for value in score.double().flatten().tolist()]
    if alive is None:
        alive = [None] * len(scores)
    lives = [
        bool(value)
        for score, mask in zip(scores, alive, strict=True)
        for value in (torch.ones_like(score) if mask is None else mask).flatten().tolist()
    ]
    order = sorted((i for i in range(len(flat)) if lives[i]), key=lambda i: -flat[i])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order[:keep]] = True
    parts = kept.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for mask, wanted in zip(got, expected, strict=True):
        assert mask.dtype == torch.bool
        assert torch.equal(mask, wanted)


@st.composite
def selections(draw: st.DrawFn):
    """Several tensors of one dtype with many ties, zeros of both signs, denormals, extremes."""
    dtype = draw(st.sampled_from(DTYPES))
    info = torch.finfo(dtype)
    special = [0.0, -0.0, info.tiny, -info.tiny, info.smallest_normal / 2, info.max, info.min, 1.0]
    pool = draw(st.lists(st.floats(-8, 8, width=16), max_size=4)) + special
    if draw(st.booleans()):
        pool = [abs(value) for value in pool]
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(lambda x: sum(x) > 0))
    scores = [
        torch.tensor(draw(st.lists(st.sampled_from(pool), min_size=n, max_size=n)), dtype=dtype)
        for n in sizes
    ]
    alive: list[Tensor | None] = [
        torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
        if draw(st.booleans())
        else None
        for n in sizes
    ]
    living = sum(
        n if mask is None else int(mask.sum()) for n, mask in zip(sizes, alive, strict=True)
    )
    if living == 0:
        alive, living = [None] * len(sizes), sum(sizes)
    return scores, draw(st.integers(1, living)), alive


@settings(max_examples=150, deadline=None)
@given(selections())
def test_equals_a_stable_sort(case):
    scores, keep, alive = case
    got = select(scores, keep, alive)
    assert sum(int(mask.sum()) for mask in got) == keep
    assert_same(got, by_stable_sort(scores, keep, alive))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [1, 2, 777, 2999, 3000])
def test_random_scores_of_a_wide_range(dtype, keep):
    generator = torch.Generator().manual_seed(keep)
    exponents = torch.empty(3000).uniform_(-12, 4, generator=generator)
    flat = torch.pow(10.0, exponents) * torch.randn(3000, generator=generator)
    scores = [part.to(dtype) for part in flat.split([1000, 1, 1999])]
    assert_same(select(scores, keep), by_stable_sort(scores, keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbouring_floats_are_told_apart(dtype):
    for start in (1.0, 0.0, torch.finfo(dtype).tiny, -3.5):
        steps = [torch.tensor(start, dtype=dtype)]
        for _ in range(9):
            steps.append(torch.nextafter(steps[-1], torch.tensor(math.inf, dtype=dtype)))
        scores = [torch.stack(steps)[torch.randperm(10)]]
        for keep in range(1, 11):
            assert_same(select(scores, keep), by_stable_sort(scores, keep))


def test_keys_order_all_bfloat16_values():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    values = values[torch.isfinite(values)].float()
    ordered = values.sort(stable=True).values
    keys = order_keys(ordered, torch.float32)
    assert torch.equal(keys.diff() > 0, ordered.diff() > 0)
    assert torch.equal(keys.diff() == 0, ordered.diff() == 0)  # only -0.0 and 0.0 share a key


def test_position_is_the_logical_one_in_any_memory_format():
    score = torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    mask = select([score], 5)[0]
    assert mask.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    transposed = torch.zeros(4, 3).T
    assert select([transposed], 5)[0].flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_ties_go_to_the_earlier_tensor():
    scores = [torch.tensor([1.0, 5.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0])]
    assert [mask.tolist() for mask in select(scores, 3)] == [[True, True], [True, False], [False]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_of_both_signs_tie(dtype):
    mask = select([torch.tensor([-1.0, -0.0, 0.0, -0.0], dtype=dtype)], 2)[0]
    assert mask.tolist() == [False, True, True, False]


def test_mixed_dtypes_compare_by_value():
    scores = [
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16),
        torch.tensor([1 + 1e-12, 0.25], dtype=torch.float64),
    ]
    assert [mask.tolist() for mask in select(scores, 1)] == [[False, False], [True, False]]


def test_scores_are_left_as_they_are():
    score = torch.randn(50)
    before, alive = score.clone(), torch.rand(50) < 0.5
    kept_alive = alive.clone()
    select([score], 3, [alive])
    assert torch.equal(score, before)
    assert torch.equal(alive, kept_alive)


def test_counts_of_parts_add_up():
    """Ranks may count their own scores and add: the counts are those of all scores."""
    keys = order_keys(torch.randn(1000), torch.float32)
    whole = digit_counts(keys, 16, None)
    parts = digit_counts(keys[:300], 16, None) + digit_counts(keys[300:], 16, None)
    assert int(whole.sum()) == 1000
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, -math.nan])
def test_non_finite_scores_are_refused(dtype, bad):
    scores = [torch.ones(3, dtype=dtype), torch.tensor([1.0, bad], dtype=dtype)]
    with pytest.raises(RangeError, match="1 scores are NaN or infinite"):
        select_threshold(scores, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_finite_score_is_accepted(dtype):
    info = torch.finfo(dtype)
    assert select([torch.tensor([info.min, info.max], dtype=dtype)], 1)[0].tolist() == [False, True]


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_keep_out_of_range(keep):
    with pytest.raises(ValueError, match=rf"1\.\.4 .* got {keep}"):
        select_threshold([torch.ones(4)], keep)


def test_integer_scores_are_refused():
    with pytest.raises(TypeError, match="int64"):
        select_threshold([torch.arange(4)], 1)
