"""Memory of large results that is kept for the next ones, and given back."""

from __future__ import annotations

import gc

import pytest
import torch
from backends import need

from pxfast import _native, ops

WIDE = 512  # of a map of a MiB and of one channel


@pytest.fixture(autouse=True)
def _native_kernels():
    need("cpu", _native.problem)


def results(size: int = WIDE) -> tuple[torch.Tensor, torch.Tensor]:
    value = torch.rand(1, 1, size, size)
    kept = torch.ones(1, 1, 1, 1)
    return ops.sparse_dual_conv2d(value, value, kept, kept.bool())


def test_what_is_dropped_comes_again():
    with ops.kept_memory():
        first = results()
        places = {t.data_ptr() for t in first}
        del first
        again = results()
        assert places & {t.data_ptr() for t in again}


def test_what_is_in_use_is_never_given_out():
    with ops.kept_memory():
        held = [results() for _ in range(4)]
        copies = [(y.clone(), path.clone()) for y, path in held]
        views = [y[..., 1:] for y, _ in held[:2]]
        del held[:2]  # their values live on in the views
        gc.collect()
        others = [results() for _ in range(4)]
        for view, (y, _) in zip(views, copies, strict=False):
            assert torch.equal(view, y[..., 1:])
        for (y, path), (y0, path0) in zip(held, copies[2:], strict=True):
            assert torch.equal(y, y0) and torch.equal(path, path0)
        places = [t.data_ptr() for pair in (*held, *others) for t in pair]
        assert len(set(places)) == len(places)


def test_results_outlive_the_block():
    with ops.kept_memory(), ops.kept_memory():
        y, path = results()
        expected = y.clone()
    results()
    assert torch.equal(y, expected) and torch.equal(path, expected)
    y.add_(1)
    del y, path  # frees what no block keeps any more


def test_it_ends_with_an_exception():
    with pytest.raises(KeyError), ops.kept_memory():
        raise KeyError
    with ops.kept_memory():  # one pair of calls, not two
        y, _ = results()
        assert y.is_contiguous() and y.shape == (1, 1, WIDE, WIDE)


def test_small_and_large_blocks():
    with ops.kept_memory():
        for size in (WIDE, 2 * WIDE, WIDE, 700, 3, 1, 2 * WIDE):
            y, path = results(size)
            assert y.shape == path.shape == (1, 1, size, size)
            assert torch.equal(y, path)
