"""The CUDA source of squared_attention, executed on the CPU, against the reference in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from emulated import attention_kernels as kernels
from emulated.kernels import ORDERS, Array, Order
from tolerances import attention

import pxfast.reference.squared_attention as reference

# T and S around tiles of 8 queries and 16 keys; D, E, P around slabs of 4, 32 and 16 or 32 columns.
SIZES = [*itertools.product((1, 8, 9, 17), (1, 15, 16, 17, 33))]
WIDTHS = [(1, 1, 1), (4, 32, 16), (5, 33, 17), (3, 70, 33)]


def arguments(T: int, S: int, D: int, E: int, P: int) -> tuple[Array, ...]:
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(1, 2, *s)).astype(np.float32) for s in ((T, D), (S, D), (S, E)))
    path = random.uniform(1, 2, (1, 1, S, P)).astype(np.float32)
    mask = random.uniform(size=(1, 2, T, S)) < 0.8
    return q, k, path, v, mask


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_tiles_of_attention(widths: tuple[int, int, int], order: Order) -> None:
    for T, S in SIZES:
        q, k, path, v, mask = arguments(T, S, *widths)
        output, paths = kernels.squared_attention(q, k, path, v, mask, 0.5, order=order, small=True)
        dpath = kernels.squared_attention_backward(
            paths.transpose(0, 2, 1, 3), q, k, mask, 0.5, order=order, small=True
        )
        exact = [torch.from_numpy(a).double() for a in (q, k, path, np.abs(v), v)]
        q_, k_, path_, magnitude, v_ = exact
        kept = torch.from_numpy(mask)
        expected, squared = reference.squared_attention(q_, k_, path_, v_, kept, 0.5)
        terms = reference.squared_attention(q_, k_, path_, magnitude, kept, 0.5)[0]
        dy = torch.from_numpy(paths).double().transpose(1, 2)
        back = reference.squared_attention_backward(dy, q_, k_, kept, 0.5)
        largest = float(0.5 * (q_.abs() @ k_.abs().mT).max())
        tolerance = attention(widths[0], max(T, S), largest, torch.float32)
        assert output is not None
        for actual, wanted, size in (
            (output, expected, terms),
            (paths, squared, squared),
            (dpath, back, back),
        ):
            error = (torch.from_numpy(actual).double().transpose(1, 2) - wanted).abs()
            assert (error <= tolerance * size).all()
