"""The CUDA source of select_threshold and write_masks, executed on the CPU in every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import _array
from emulated import select_kernels
from emulated.kernels import ORDERS, Order
from hypothesis import given, settings
from hypothesis import strategies as st
from selecting import (
    DTYPES,
    Masks,
    assert_same,
    by_stable_sort,
    count_alive,
    many_decades,
    selections,
)
from torch import Tensor

from pxfast.ops import Bins, Threshold, narrow


def select(
    scores: list[Tensor], keep: int, alive: Masks, first: Bins, order: Order, small: bool = True
) -> list[Tensor]:
    """The masks, from the kernels with the small cuts of select_cut.h."""
    arrays = [_array(score) for score in scores], [_array(mask) for mask in alive]
    settings: dict[str, Any] = {"order": order, "small": small}
    step: Bins | Threshold = first
    while isinstance(step, Bins):
        where = step.low, step.shift, step.bits
        counts = select_kernels.score_histogram(*arrays, *where, **settings)
        step = narrow(torch.from_numpy(counts), step, keep)
    masks = select_kernels.write_masks(*arrays, step.key, step.ties, step.equal, **settings)
    return [torch.from_numpy(mask).view(torch.bool) for mask in masks]


# Histograms in global memory, and in shared memory (6 bits of the small cut).
FIRST: dict[str, Callable[[torch.dtype], Bins]] = {
    "global": Bins.whole,
    "shared": lambda dtype: Bins(
        -(1 << (8 * dtype.itemsize - 1)), 8 * dtype.itemsize - 6, 6, dtype
    ),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("order", ORDERS)
def test_small_cuts(order: Order, dtype: torch.dtype, first: str) -> None:
    scores, alive = many_decades([0, 37, 529, 0, 531, 1060, 0], dtype, masked=True)
    keep = count_alive(scores, alive) // 2
    got = select(scores, keep, alive, FIRST[first](dtype), order)
    assert_same(got, by_stable_sort(scores, keep, alive))


@pytest.mark.parametrize("order", ORDERS)
def test_the_cuts_of_a_gpu(order: Order) -> None:
    scores, alive = many_decades([15_000, 1000, 801], torch.bfloat16, masked=True)
    got = select(scores, 7000, alive, Bins.whole(torch.bfloat16), order, small=False)
    assert_same(got, by_stable_sort(scores, 7000, alive))


@given(case=selections(), order=st.sampled_from(ORDERS), first=st.sampled_from(sorted(FIRST)))
@settings(max_examples=10, deadline=None)
def test_any_scores(case: tuple[list[Tensor], int, Masks], order: Order, first: str) -> None:
    scores, keep, alive = case
    got = select(scores, keep, alive, FIRST[first](scores[0].dtype), order)
    assert_same(got, by_stable_sort(scores, keep, alive))


# ThreadSanitizer judges by what orders two accesses, not by when they happen.
