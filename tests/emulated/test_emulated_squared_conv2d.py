"""The CUDA source of squared_conv2d, executed on the CPU with small tiles, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from emulated import conv_kernels as kernels
from emulated.kernels import ORDERS, Order
from tolerances import sum_of_products

import pxfast.reference.squared_conv2d as reference

# x, O, kernel, stride, padding, dilation, groups; around tiles of 16 and 32, slabs of 8, splits.
GEOMETRIES: list[tuple[Any, ...]] = [
    ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 5, 9, 8), 17, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 8, 7, 7), 6, (3, 2), (2, 3), (2, 1), (2, 1), 2),
    ((3, 4, 6, 5), 8, (3, 3), (2, 2), (1, 1), (1, 1), 4),
    ((1, 40, 4, 4), 33, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 2, 16, 16), 3, (2, 2), (3, 3), (0, 0), (1, 1), 1),
    # depthwise: blocks of 512 positions, 128 squares at a time, 9 or 16 sums; several outputs
    ((2, 3, 20, 17), 6, (3, 3), (1, 1), (1, 1), (1, 1), 3),
    ((1, 2, 31, 9), 2, (5, 6), (2, 3), (1, 2), (1, 1), 2),
    ((1, 2, 15, 16), 2, (13, 11), (1, 1), (0, 0), (1, 1), 2),
    ((3, 2, 9, 9), 4, (3, 3), (2, 3), (0, 0), (2, 2), 2),
    ((1, 1, 5, 5), 9, (3, 3), (1, 1), (1, 1), (1, 1), 1),  # not any more
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_tiles_of_convolutions(geometry: tuple[Any, ...], order: Order) -> None:
    shape, outputs, kernel, *rest = geometry
    random = np.random.default_rng(0)
    x = random.uniform(0.1, 1, shape).astype(np.float32)
    weight = random.normal(size=(outputs, shape[1] // rest[3], *kernel)).astype(np.float32)
    mask, saliency = random.uniform(size=weight.shape) < 0.8, np.ones_like(weight)
    call = kernels.Convolution(x, weight, mask, *rest, order=order, small=True)
    y = call.forward()
    dy = random.uniform(0.1, 1, y.shape).astype(np.float32)
    dx = call.backward(dy, saliency, True)
    exact = [torch.from_numpy(a).double() for a in (dy, x, weight)]
    sums = torch.ones_like(exact[2])
    kept = torch.from_numpy(mask)
    expected_dx = reference.squared_conv2d_backward(*exact, kept, sums, *rest)
    expected_y = reference.squared_conv2d(*exact[1:], kept, *rest)
    taps = kernel[0] * kernel[1]
    terms = (weight[0].size, outputs * taps, dy.size // outputs)
    for actual, expected, count in zip(
        (y, dx, saliency), (expected_y, expected_dx, sums), terms, strict=True
    ):
        error = (torch.from_numpy(actual).double() - expected).abs()
        assert (error <= sum_of_products(count, torch.float32) * expected).all()
