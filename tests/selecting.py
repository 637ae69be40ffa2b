"""Selection among many tensors as it is defined, and its cases: for the tests of the ops."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from backends import Backend
from hypothesis import strategies as st
from torch import Tensor

from pxfast.ops import Bins, Threshold, narrow, select_threshold, write_masks

op_module = sys.modules[select_threshold.__module__]  # its name in pxfast.ops is the function's
FAKES = {
    "score_histogram": op_module._fake,
    "write_masks": sys.modules[write_masks.__module__]._fake,
}

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Masks = list[Tensor | None]


def search(
    backend: Backend, scores: list[Tensor], keep: int, alive: Masks, bins: Bins | None = None
) -> tuple[Threshold, int]:
    """The threshold from a backend's counts, and how many reads it took."""
    step: Bins | Threshold = bins or Bins.whole(scores[0].dtype)
    reads = 0
    while isinstance(step, Bins):
        counts = backend("score_histogram", scores, alive, step.low, step.shift, step.bits)
        step = narrow(counts, step, keep)
        reads += 1
    return step, reads


def select(backend: Backend, scores: list[Tensor], keep: int, alive: Masks | None = None):
    """The masks that a backend makes."""
    alive = alive or [None] * len(scores)
    threshold, _ = search(backend, scores, keep, alive)
    return write(backend, scores, threshold, alive)


def write(backend: Backend, scores: list[Tensor], threshold: Threshold, alive: Masks):
    """The masks of a threshold, by a backend."""
    return backend("write_masks", scores, alive, threshold.key, threshold.ties, threshold.equal)


def by_stable_sort(scores: list[Tensor], keep: int, alive: Masks | None = None) -> list[Tensor]:
    """The definition: sort by falling score, equal scores by position, and keep the first."""
    alive = alive or [None] * len(scores)
    flat = torch.cat([score.double().flatten() for score in scores])
    lives = torch.cat(
        [
            torch.ones(score.numel(), dtype=torch.bool) if mask is None else mask.flatten()
            for score, mask in zip(scores, alive, strict=True)
        ]
    )
    order = flat.sort(descending=True, stable=True).indices
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order[lives[order]][:keep]] = True
    parts = kept.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def count_alive(scores: list[Tensor], alive: Masks) -> int:
    """How many scores may be kept."""
    return sum(
        score.numel() if mask is None else int(mask.sum())
        for score, mask in zip(scores, alive, strict=True)
    )


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for mask, wanted in zip(got, expected, strict=True):
        assert mask.dtype == torch.bool
        assert mask.is_contiguous()
        assert torch.equal(mask, wanted)


def assert_refused(
    backend: Backend, op: str, arguments: tuple[list[Tensor], Masks, int, int, int], message: str
) -> None:
    """By the op's fake and by a backend, in the same words; without a tensor no device is found."""
    calls = [lambda: FAKES[op](*arguments)]
    if arguments[0]:
        calls.append(lambda: backend(op, *arguments))
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f"{op}: {message}"


def many_decades(
    sizes: list[int], dtype: torch.dtype, masked: bool, seed: int = 0
) -> tuple[list[Tensor], Masks]:
    """Scores of both signs from 1e-4 to 1e4, a tenth of them 0, some of them masked."""
    draw = torch.Generator().manual_seed(seed)
    scores, alive = [], []
    for i, size in enumerate(sizes):
        exponents = torch.empty(size, dtype=torch.float64).uniform_(-4, 4, generator=draw)
        score = 10**exponents * torch.randn(size, generator=draw, dtype=torch.float64).sign()
        score[torch.rand(size, generator=draw) < 0.1] = 0
        scores.append(score.to(dtype))
        alive.append(torch.rand(size, generator=draw) < 0.6 if masked and i % 3 != 1 else None)
    return scores, alive


@st.composite
def selections(draw: st.DrawFn) -> Any:
    """Several tensors of one dtype with many ties, zeros of both signs, denormals, extremes."""
    dtype = draw(st.sampled_from(DTYPES))
    info = torch.finfo(dtype)
    special = [0.0, -0.0, info.tiny, -info.tiny, info.smallest_normal / 2, info.max, info.min, 1.0]
    pool = draw(st.lists(st.floats(-8, 8, width=16), max_size=4)) + special
    if draw(st.booleans()):
        pool = [abs(value) for value in pool]
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(lambda x: sum(x) > 0))
    scores = [
        torch.tensor(draw(st.lists(st.sampled_from(pool), min_size=n, max_size=n)), dtype=dtype)
        for n in sizes
    ]
    alive: Masks = [
        torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
        if draw(st.booleans())
        else None
        for n in sizes
    ]
    if count_alive(scores, alive) == 0:
        alive = [None] * len(sizes)
    return scores, draw(st.integers(1, count_alive(scores, alive))), alive
