"""The CUDA launchers of squared_linear on numpy arrays, executed on the CPU.

Shapes are those of csrc/squared_linear.h. The weight is float32, float64, float16, or bfloat16 as
uint16; path sums are float32, or float64 where the weight is. Arrays are contiguous; they may start
anywhere.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from emulated.build import Program

Array = npt.NDArray[Any]
Order = Literal["forward", "reverse", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)

LIBRARY = Program("abi.cpp", flags=("-O0", "-shared", "-fPIC"))
PRECISIONS = ("highest", "high", "medium")  # enum Precision of csrc/squared_linear.h
DTYPES = {"float32": 0, "float64": 1, "uint16": 2, "float16": 3}  # enum Dtype of csrc/dtype.h


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled launchers."""
    loaded = ctypes.CDLL(str(LIBRARY.path()))
    array, size, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    sizes = [size, size, size, ctypes.c_int]  # and the weight's dtype
    call = [*sizes, ctypes.c_int]
    loaded.emulated_squared_linear.argtypes = [*[array] * 4, *call, ctypes.c_bool, text]
    loaded.emulated_squared_linear.restype = text
    loaded.emulated_squared_linear_backward.argtypes = [*[array] * 6, *call, ctypes.c_bool, text]
    loaded.emulated_squared_linear_backward.restype = text
    loaded.emulated_scratch_bytes.argtypes = call
    loaded.emulated_scratch_bytes.restype = size
    loaded.emulated_backward_scratch_bytes.argtypes = [*sizes, ctypes.c_bool, ctypes.c_int]
    loaded.emulated_backward_scratch_bytes.restype = size
    for name in ("emulated_bf16", "emulated_f16"):
        getattr(loaded, name).argtypes = [ctypes.c_uint16]
        getattr(loaded, name).restype = ctypes.c_float
    return loaded


def path_dtype(weight: Array) -> np.dtype[Any]:
    """The type of path sums for this weight."""
    return np.dtype(np.float64 if weight.dtype == np.float64 else np.float32)


def out_sizes(x: Array, kernel: Sequence[int], *settings: Any) -> list[int]:
    """Height and width of a convolution's output, from stride, padding and dilation."""
    axes = zip(x.shape[2:], kernel, *settings, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]


def squared_linear(
    x: Array,
    weight: Array,
    mask: Array | None = None,
    precision: str = "highest",
    *,
    order: Order = "forward",
    small: bool = False,
) -> Array:
    """y = x (W∘W∘M)ᵀ; `small` takes the tiles of small_cut.h in place of the real ones."""
    (tokens, inputs), outputs = x.shape, weight.shape[0]
    _check(weight, {"x": x}, {"weight": weight, "mask": mask}, (outputs, inputs))
    y = np.full((tokens, outputs), np.nan, path_dtype(weight))
    arrays = [_pointer(array) for array in (x, weight, mask, y)]
    sizes = (tokens, outputs, inputs, DTYPES[weight.dtype.name], PRECISIONS.index(precision))
    _raise(library().emulated_squared_linear(*arrays, *sizes, small, order.encode()))
    return y


def squared_linear_backward(
    dy: Array,
    x: Array,
    weight: Array,
    mask: Array | None,
    saliency: Array,
    want_dx: bool = True,
    precision: str = "highest",
    *,
    order: Order = "forward",
    small: bool = False,
) -> Array | None:
    """dx = dy (W∘W∘M), returned if wanted, and saliency += (dyᵀx)∘W∘W∘M, in place."""
    (tokens, inputs), outputs = x.shape, weight.shape[0]
    paths = {"x": x, "dy": dy, "saliency": saliency}
    weights = {"weight": weight, "mask": mask, "saliency": saliency}
    _check(weight, paths, weights, (outputs, inputs))
    if dy.shape != (tokens, outputs):
        raise ValueError(f"dy must be {(tokens, outputs)}, got {dy.shape}")
    dx = np.full((tokens, inputs), np.nan, path_dtype(weight)) if want_dx else None
    arrays = [_pointer(array) for array in (dy, x, weight, mask, dx, saliency)]
    sizes = (tokens, outputs, inputs, DTYPES[weight.dtype.name], PRECISIONS.index(precision))
    _raise(library().emulated_squared_linear_backward(*arrays, *sizes, small, order.encode()))
    return dx


def _check(
    weight: Array,
    paths: dict[str, Array],
    weights: dict[str, Array | None],
    shape: tuple[int, int],
) -> None:
    for name, array in {**paths, **weights}.items():
        if array is not None and not array.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous")
    for name, array in paths.items():
        if array.dtype != path_dtype(weight):
            raise ValueError(f"{name} must be {path_dtype(weight)}, got {array.dtype}")
    for name, array in weights.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {array.shape}")


def _pointer(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


def _raise(message: bytes | None) -> None:
    if message is not None:
        raise RuntimeError(message.decode())
