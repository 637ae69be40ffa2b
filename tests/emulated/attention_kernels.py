"""The CUDA launcher of squared_attention on numpy arrays, executed on the CPU.

Shapes are those of csrc/squared_attention.h. q, k and v are float32, float64, float16, or bfloat16
as uint16; path sums are float32, or float64 where q is. Arrays that are read may have any strides
but for their last dimension, size 1 along samples or heads, and start anywhere.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from emulated.build import Program
from emulated.kernels import DTYPES, Array, Order, path_dtype

LIBRARY = Program("attention_abi.cpp", flags=("-O1", "-shared", "-fPIC"))


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled launcher."""
    loaded = ctypes.CDLL(str(LIBRARY.path()))
    array, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool
    text, number = ctypes.c_char_p, ctypes.c_double
    loaded.emulated_squared_attention.argtypes = [
        *[array] * 6, size, flag, array, array, array, number, ctypes.c_int, flag, flag, text,
    ]  # fmt: skip
    loaded.emulated_squared_attention.restype = text
    return loaded


def squared_attention(
    q: Array,
    k: Array,
    path: Array,
    v: Array | None,
    mask: Array | None,
    scale: float,
    *,
    order: Order = "forward",
    small: bool = False,
) -> tuple[Array | None, Array]:
    """A v [N, T, H, E] and (A∘A) path [N, T, H, P]; `small` takes the tiles of attention_cut.h."""
    N, H, T, _ = q.shape
    output = None if v is None else _unwritten((N, T, H, v.shape[3]), q.dtype)
    paths = _unwritten((N, T, H, path.shape[3]), path_dtype(q))
    _call(q, k, path, v, mask, scale, output, paths, order, small, backward=False)
    return output, paths


def squared_attention_backward(
    dy: Array,
    q: Array,
    k: Array,
    mask: Array | None,
    scale: float,
    *,
    order: Order = "forward",
    small: bool = False,
) -> Array:
    """dpath [N, S, H, P] = (A∘A)ᵀ dy."""
    (N, H), S = q.shape[:2], k.shape[2]
    dpath = _unwritten((N, S, H, dy.shape[3]), path_dtype(q))
    _call(q, k, dy, None, mask, scale, None, dpath, order, small, backward=True)
    return dpath


def _call(
    q: Array,
    k: Array,
    given: Array,
    v: Array | None,
    mask: Array | None,
    scale: float,
    output: Array | None,
    out: Array,
    order: Order,
    small: bool,
    *,
    backward: bool,
) -> None:
    if given.dtype != path_dtype(q):
        raise ValueError(f"path sums must be {path_dtype(q)}, got {given.dtype}")
    read = [q, k, given, v, mask]
    strides = np.array([_strides(array) for array in read], np.int64)
    step = 0 if mask is None or mask.shape[3] == 1 else 1
    widths = (q.shape[3], 0 if v is None else v.shape[3], given.shape[3])
    sizes = np.array([*q.shape[:3], k.shape[2], *widths], np.int64)
    message = library().emulated_squared_attention(
        *map(_pointer, read), _pointer(strides), step, mask is not None and mask.dtype != np.bool_,
        _pointer(output), _pointer(out), _pointer(sizes), scale, DTYPES[q.dtype.name], backward,
        small, order.encode(),
    )  # fmt: skip
    if message is not None:
        raise RuntimeError(message.decode())


def _strides(array: Array | None) -> list[int]:
    if array is None:
        return [0, 0, 0]
    if array.size and array.shape[3] > 1 and array.strides[3] != array.itemsize:
        raise ValueError("the last dimension must be contiguous")
    shape, strides = array.shape[:3], array.strides[:3]
    return [0 if n == 1 else s // array.itemsize for n, s in zip(shape, strides, strict=True)]


def _pointer(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


def _unwritten(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """NaN, in bits as well."""
    return (
        np.frombuffer(b"\xff" * (int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape).copy()
    )
