"""The CUDA launcher of gate on numpy arrays, executed on the CPU.

Shapes are those of csrc/gate.h. z is float32, float64, float16, or bfloat16 as uint16; path sums
are float32, or float64 where z is. Arrays are contiguous; they may start anywhere.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from emulated.build import Program
from emulated.kernels import DTYPES, Array, Order, path_dtype

LIBRARY = Program("gate_abi.cpp", flags=("-O0", "-shared", "-fPIC"))


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled launcher, and the harness's rounding to 16 bits."""
    loaded = ctypes.CDLL(str(LIBRARY.path()))
    array, size, number, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p
    scalars = [number, ctypes.c_double, ctypes.c_double, number, number, text]
    loaded.emulated_gate.argtypes = [*[array] * 4, *[size] * 6, *scalars]
    loaded.emulated_gate.restype = text
    for name in ("emulated_to_bf16", "emulated_to_f16"):
        getattr(loaded, name).argtypes = [ctypes.c_float]
        getattr(loaded, name).restype = ctypes.c_uint16
    return loaded


def gate(
    z: Array,
    path: Array,
    kind: int,
    a: float,
    b: float,
    value: Array | None,
    *,
    over_b: bool = False,
    order: Order = "forward",
) -> Array:
    """path · gate(z)² of z [A, B, K], or its sum [A, 1, K] over B; path has z's shape, or 1 in some
    dimensions. Writes value."""
    if path.dtype != path_dtype(z) or not all(
        n in (1, size) for n, size in zip(path.shape, z.shape, strict=True)
    ):
        raise ValueError(f"path {path.dtype} {path.shape} does not go with z {z.dtype} {z.shape}")
    rows = (1,) if over_b else z.shape[1:2]
    gated = np.full((z.shape[0], *rows, z.shape[2]), np.nan, path.dtype)
    steps = (path.shape[1] * path.shape[2], path.shape[2], 1)
    strides = [0 if n == 1 else step for n, step in zip(path.shape, steps, strict=True)]
    arrays = [None if array is None else array.ctypes.data for array in (z, path, value, gated)]
    scalars = (kind, a, b, DTYPES[z.dtype.name], over_b, order.encode())
    message = library().emulated_gate(*arrays, *z.shape, *strides, *scalars)
    if message is not None:
        raise RuntimeError(message.decode())
    return gated
