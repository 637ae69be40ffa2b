"""The CUDA source of gate, executed on the CPU, against the reference in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from emulated import gate_kernels as kernels
from emulated.kernels import ORDERS, Array, Order
from tolerances import GATE_OF_OP

from pxfast.reference.gate import GATES

# A, B, K around a vector of 4 and a block of 256 vectors; rows that are aligned, rows that are not.
SHAPES = [(1, 1, 1), (1, 1, 1023), (1, 1, 1029), (1, 3, 8), (2, 5, 7), (3, 2, 260), (2, 300, 4)]


def gated(z: Array, path: Array, order: Order = "forward") -> Array:
    """By SiLU."""
    return kernels.gate(z, path, list(GATES).index("silu"), 0.0, 0.0, np.empty_like(z), order=order)


def arguments(shape: tuple[int, ...], wide: tuple[bool, ...]) -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    narrow = [size if w else 1 for size, w in zip(shape, wide, strict=True)]
    return (
        random.normal(size=shape).astype(np.float32),
        random.uniform(1, 2, narrow).astype(np.float32),
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("wide", [*itertools.product([False, True], repeat=3)], ids=str)
def test_every_form_of_narrow_path_sums(wide: tuple[bool, ...], order: Order) -> None:
    for shape in SHAPES:
        z, path = arguments(shape, wide)
        exact = path.astype(np.float64) * torch.sigmoid(torch.from_numpy(z).double()).numpy() ** 2
        error = np.abs(gated(z, path, order) - exact)
        assert np.all(error <= GATE_OF_OP[torch.float32] * exact)


@pytest.mark.parametrize("name", ["z", "path"])
def test_arrays_off_their_alignment(name: str) -> None:
    z, path = arguments((2, 3, 16), (True, False, True))
    expected = gated(z, path)
    moved = {"z": z, "path": path}
    memory = np.empty(moved[name].size + 17, np.float32)
    start = -memory.ctypes.data // 4 % 16 + 1
    moved[name] = memory[start : start + moved[name].size].reshape(moved[name].shape)
    moved[name][...] = {"z": z, "path": path}[name]
    np.testing.assert_array_equal(gated(**moved), expected)


def test_numbers_are_rounded_to_storage_as_torch_does() -> None:
    numbers = torch.cat([torch.randn(3000) * 10.0**e for e in range(-9, 6)])
    numbers = torch.cat([numbers, torch.tensor([0.0, -0.0, 65519.9, 65520.0, 2.0**-25, 3e38])])
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        rounded = getattr(kernels.library(), f"emulated_to_{name}")
        bits = np.array([rounded(float(number)) for number in numbers], np.uint16)
        assert np.array_equal(bits, numbers.to(dtype).view(torch.uint16).numpy())
