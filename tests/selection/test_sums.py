"""Sums that do not depend on the order of their terms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pxfast.selection.sums import row_sums


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_equals_the_correctly_rounded_sum(data, dtype):
    """Of terms within 2^60 of the largest one, nothing is dropped: math.fsum rounds once, too."""
    exponent = data.draw(st.integers(-60, 60))
    terms = st.floats(-1, 1, width=16).map(lambda x: x * 2.0**exponent)  # at least 2^-24
    rows = torch.tensor(
        data.draw(st.lists(st.lists(terms, min_size=7, max_size=7), min_size=1, max_size=4))
    ).to(dtype)
    expected = [math.fsum(row.double().tolist()) for row in rows]
    assert row_sums(rows).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 31, 4096, 5000])
def test_no_order_changes_a_bit(count):
    generator = torch.Generator().manual_seed(count)
    exponents = torch.empty(3, count).uniform_(-9, 9, generator=generator)
    rows = torch.randn(3, count, generator=generator) * torch.pow(10.0, exponents)
    total = row_sums(rows)
    for _ in range(5):
        assert torch.equal(row_sums(rows[:, torch.randperm(count)]), total)
    exact = torch.tensor([math.fsum(row.double().tolist()) for row in rows], dtype=torch.float64)
    # A term loses less than 2^-80 of the largest, 4096 terms 2^-68 (5000: 2^-66); one rounding.
    allowed = 2.0**-66 * rows.double().abs().amax(1) + 2.0**-53 * exact.abs()
    assert ((total - exact).abs() <= allowed).all()


def test_a_plain_sum_does_depend_on_the_order():
    """What this is for."""
    row = torch.tensor([[2.0**60, 1.0, 1.0, -(2.0**60)]])
    other = row[:, [1, 2, 0, 3]]
    assert row.sum(1, dtype=torch.float64) == other.sum(1, dtype=torch.float64) == 0
    assert row_sums(row) == row_sums(other) == 2


def test_extremes():
    largest, least = torch.finfo(torch.float64).max, 5e-324
    rows = torch.tensor([[largest, -largest, 1.0], [least, least, 0.0], [0.0, -0.0, 0.0],
                         [largest / 4, largest / 4, largest / 4]], dtype=torch.float64)  # fmt: skip
    assert row_sums(rows).tolist() == [0.0, 2 * least, 0.0, largest / 4 * 3]
    assert row_sums(torch.ones(2, 0)).tolist() == [0, 0]
    assert row_sums(torch.ones(0, 2)).tolist() == []
