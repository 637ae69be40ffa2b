"""The search for the threshold: exact on every backend, and its bad input."""

from __future__ import annotations

import math

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
    many_decades,
    op_module,
    select,
    selections,
)
from torch import Tensor

import pxfast.reference.select_threshold as reference
from pxfast.errors import RangeError
from pxfast.ops import select_threshold, write_masks

ANY = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


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


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, -math.nan])
def test_non_finite_scores_are_refused(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bad: float, large: bool
):
    if large:
        monkeypatch.setattr(op_module, "SAMPLED", 3)
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
        monkeypatch.setattr(op_module, "SAMPLED", 0)
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
