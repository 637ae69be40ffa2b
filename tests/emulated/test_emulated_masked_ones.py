"""The CUDA source of masked_ones, executed on the CPU with small tiles, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from emulated import ones_kernels as kernels
from emulated.kernels import ORDERS, Order
from tolerances import sum_of_products

import pxfast.reference.masked_ones as reference

# T, O, K: around 4 rows a warp, words of 32 bits, 32 words; tiles of 16, 32 and 64, slabs of 8.
SHAPES = [
    (1, 15, 1), (1, 16, 32), (1, 17, 33), (1, 2, 1056), (7, 9, 31), (8, 33, 65),
    (9, 31, 7), (16, 32, 64), (17, 33, 36), (33, 65, 100), (70, 132, 40),
]  # fmt: skip

# x, O, kernel, stride, padding, dilation, groups.
GEOMETRIES: list[tuple[Any, ...]] = [
    ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 5, 9, 8), 17, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 8, 7, 7), 6, (3, 2), (2, 3), (2, 1), (2, 1), 2),
    ((3, 4, 6, 5), 8, (3, 3), (2, 2), (1, 1), (1, 1), 4),
    ((1, 40, 4, 4), 33, (1, 1), (1, 1), (0, 0), (1, 1), 1),
]


def draw(*shape: int) -> tuple[np.random.Generator, Any]:
    """A source of random numbers, and a mask."""
    random = np.random.default_rng(0)
    return random, random.uniform(size=shape) < 0.6


def check(actual: Any, expected: torch.Tensor, terms: int) -> None:
    error = (torch.from_numpy(actual).double() - expected).abs()
    assert (error <= sum_of_products(terms, torch.float32) * expected).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_layers(shape: tuple[int, int, int], order: Order) -> None:
    tokens, outputs, inputs = shape
    random, mask = draw(outputs, inputs)
    x = random.uniform(0.1, 1, (tokens, inputs)).astype(np.float32)
    bits = kernels.pack_ones(mask, order)
    assert np.array_equal(bits.view(np.int32), reference.pack_ones(torch.from_numpy(mask)))
    transposed = kernels.transpose_ones(bits, inputs, order)
    assert np.array_equal(transposed.view(np.int32), reference.pack_ones(torch.from_numpy(mask.T)))
    y = kernels.masked_ones_linear(x, bits, order=order, small=True)
    exact = torch.from_numpy(x).double() @ torch.from_numpy(mask).double().T
    check(y, exact, inputs)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolutions(geometry: tuple[Any, ...], order: Order) -> None:
    shape, outputs, kernel, *rest = geometry
    channels = shape[1] // rest[3]
    random, mask = draw(outputs, channels, *kernel)
    x = random.uniform(0.1, 1, shape).astype(np.float32)
    bits = kernels.pack_ones(mask.reshape(outputs, -1))
    y = kernels.masked_ones_conv2d(x, bits, kernel, *rest, order=order, small=True)
    ones = torch.from_numpy(mask).double()
    exact = torch.conv2d(torch.from_numpy(x).double(), ones, None, *rest)
    check(y, exact, mask[0].size)
