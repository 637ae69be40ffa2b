"""Masks at the speed of memory give what torch's own functions give."""

from __future__ import annotations

import pytest
import torch

from pxfast.paths.select import all_set, any_along, selected


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (4, 1, 3, 3), (2, 0, 3)])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_reductions(shape, density):
    mask = torch.rand(shape) < density
    for dims in ((0,), tuple(range(len(shape)))):
        assert torch.equal(any_along(mask, dims), mask.any(dims))
    assert all_set(mask) == bool(mask.all())
    if len(shape) > 1:
        assert torch.equal(any_along(mask.transpose(0, 1), (0,)), mask.any(1))
        assert all_set(mask.transpose(0, 1)) == bool(mask.all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("hidden", [1.0, float("nan"), float("inf"), -float("inf")])
def test_what_is_masked_is_0_whatever_it_holds(dtype, hidden):
    theta = torch.tensor([[hidden, -2.0], [3.0, hidden]], dtype=dtype)
    mask = torch.tensor([[False, True], [True, False]])
    expected = torch.tensor([[0.0, -2.0], [3.0, 0.0]], dtype=dtype)
    assert torch.equal(selected(theta, mask), expected)
    assert selected(theta, mask).dtype == dtype
    assert torch.equal(selected(theta.T, mask.T), expected.T)
