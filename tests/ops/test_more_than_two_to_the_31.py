"""Ops on tensors of more than 2³¹ elements, of which only the last are not zero.

On a CPU they take little memory: pages that are only read are all the same one, and pages that are
written are the same few again and again, but for the last.

Each check runs in a process of its own, since what a wrong offset meets first may be the end of the
memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from backends import need
from torch import Tensor

from pxfast import _native, ops

ROWS, COLUMNS = 2**21 + 1, 1024  # their product is 2³¹ + 1024
BF16, F32 = torch.bfloat16, torch.float32
PIECE = 2**24  # bytes of memory that a written tensor repeats; no smaller than what lies past 2³¹


CHECKS = [
    *["squared_linear", "squared_linear_backward", "tiled_squared_linear_backward"],
    *["gate_over_channels", "masked_ones", "squared_attention", "selection", "sparse_dual_conv2d"],
]


@pytest.mark.parametrize("check", CHECKS)
def test_more_than_two_to_the_31(device: torch.device, check: str) -> None:
    if check == "sparse_dual_conv2d" and device.type != "cpu":
        pytest.skip("sparse_dual_conv2d runs on a CPU only")
    room(device)
    ran = subprocess.run(
        [sys.executable, __file__, check, device.type],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, f"{check} ended with {ran.returncode}: {ran.stderr[-2000:]}"


def room(device: torch.device) -> None:
    """Skips where there is too little memory, and where the reference would run."""
    need("cpu", _native.problem)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
        free = next((int(s.split()[1]) << 10 for s in text.splitlines() if "Available" in s), 0)
    if free < (needed := (40 << 30) if device.type == "cuda" else (6 << 30)):
        pytest.skip(f"needs {needed >> 30} GiB of memory, {free >> 30} are free")


def zeros(*shape: int, dtype: torch.dtype, device: torch.device, written: bool = False) -> Tensor:
    """A contiguous tensor of zeros."""
    if device.type == "cuda":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # NORESERVE
    if written:
        _repeat(memory, size - size % PIECE - PIECE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _repeat(memory: mmap.mmap, size: int) -> None:
    """Lets the first `size` bytes show one piece of memory again and again."""
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    piece = os.memfd_create("piece")
    os.ftruncate(piece, PIECE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for at in range(0, size, PIECE):
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | 0x10  # FIXED
        assert call(start + at, PIECE, protection, flags, piece, 0) == start + at
    os.close(piece)


def squared_linear(device: torch.device) -> None:
    weight = zeros(ROWS, COLUMNS, dtype=BF16, device=device)
    weight[-1, -1] = 3
    y = ops.squared_linear(torch.full((1, COLUMNS), 2.0, device=device), weight)
    assert y[0, -1] == 18 and y.count_nonzero() == 1


def squared_linear_backward(device: torch.device, T: int = 1) -> None:
    weight = zeros(ROWS, COLUMNS, dtype=BF16, device=device)
    saliency = zeros(ROWS, COLUMNS, dtype=F32, device=device, written=True)
    weight[-1, -1] = 3
    dy, x = torch.full((T, ROWS), 5.0, device=device), torch.full((T, COLUMNS), 2.0, device=device)
    dx = ops.squared_linear_backward(dy, x, weight, None, saliency)
    assert (dx[:, -1] == 45).all() and dx.count_nonzero() == T
    assert saliency[-1, -1] == 90 * T and saliency[-2:].count_nonzero() == 1


def tiled_squared_linear_backward(device: torch.device) -> None:
    squared_linear_backward(device, T=33)


def gate_over_channels(device: torch.device) -> None:
    z = zeros(1, ROWS, COLUMNS, dtype=BF16, device=device)
    z[0, -1, -1] = 1
    path = torch.full((1, 1, COLUMNS), 7.0, device=device)
    sums = torch.ops.pxfast.gate(z, path, "relu", 0.0, 0.0, None, True)
    assert sums[0, 0, -1] == 7 and sums.count_nonzero() == 1


def masked_ones(device: torch.device) -> None:
    mask = zeros(ROWS, COLUMNS, dtype=torch.bool, device=device)
    mask[-1, -1] = True
    bits = ops.pack_ones(mask)
    y = ops.masked_ones_linear(torch.full((1, COLUMNS), 2.0, device=device), bits)
    assert y[0, -1] == 2 and y.count_nonzero() == 1


def squared_attention(device: torch.device) -> None:
    """Of two queries and two keys, the second ones lie 2³¹ + 1024 entries on."""

    def apart(dtype: torch.dtype, columns: int) -> Tensor:
        memory = zeros(ROWS + 1, COLUMNS, dtype=dtype, device=device)
        rows = memory.as_strided([1, 1, 2, columns], [0, 0, ROWS * COLUMNS, 1])
        return rows.copy_(torch.randn(1, 1, 2, columns))

    q, k, v, path, mask = (*(apart(BF16, 4) for _ in "qkv"), apart(F32, 4).abs_(), apart(F32, 2))
    near = [tensor.contiguous() for tensor in (q, k, path, v, mask)]
    for ours, expected in zip(
        ops.squared_attention(q, k, path, v, mask), ops.squared_attention(*near), strict=True
    ):
        assert torch.equal(ours, expected) and ours.count_nonzero() == 8


def selection(device: torch.device) -> None:
    scores = zeros(ROWS * COLUMNS, dtype=BF16, device=device)
    scores[-1] = scores[-3] = 1
    threshold = ops.select_threshold([scores], 2)
    (mask,) = ops.write_masks([scores], threshold)
    assert mask[-1] and mask[-3] and mask.count_nonzero() == 2


def sparse_dual_conv2d(device: torch.device) -> None:
    value, path = (zeros(1, ROWS, 32, 32, dtype=F32, device=device) for _ in range(2))
    weight, mask = torch.zeros(1, ROWS, 1, 1), torch.zeros(1, ROWS, 1, 1, dtype=torch.bool)
    mask[0, -1], weight[0, -1] = True, 3
    value[0, -1, -1, -1], path[0, -1, -1, -1] = 2, 5
    y, path_out = ops.sparse_dual_conv2d(value, path, weight, mask)
    assert y[0, 0, -1, -1] == 6 and y.count_nonzero() == 1
    assert path_out[0, 0, -1, -1] == 5 and path_out.count_nonzero() == 1


if __name__ == "__main__":
    globals()[sys.argv[1]](torch.device(sys.argv[2]))
