"""The CUDA launchers of masked_ones on numpy arrays, executed on the CPU.

Shapes are those of csrc/masked_ones.h. Path sums are float32 or float64; bits are uint32 or int32.
Arrays are contiguous.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import numpy as np
from emulated.build import Program
from emulated.kernels import DTYPES, Array, Order, out_sizes

LIBRARY = Program("ones_abi.cpp", flags=("-O1", "-shared", "-fPIC"))


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled launchers."""
    loaded = ctypes.CDLL(str(LIBRARY.path()))
    array, size, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    options = [ctypes.c_int, ctypes.c_bool, text]
    for name, arguments in {
        "pack_ones": [array, array, size, size, text],
        "transpose_ones": [array, array, size, size, text],
        "masked_ones_linear": [*[array] * 3, *[size] * 3, *options],
        "masked_ones_conv2d": [*[array] * 4, *options],
    }.items():
        function = getattr(loaded, f"emulated_{name}")
        function.argtypes, function.restype = arguments, text
    return loaded


def pack_ones(mask: Array, order: Order = "forward") -> Array:
    """Bits [O, ⌈K/32⌉] of a mask [O, K], bool."""
    outputs, inputs = mask.shape
    bits = _garbage(outputs, -(-inputs // 32))
    _call("pack_ones", [mask, bits], outputs, inputs, order.encode())
    return bits


def transpose_ones(bits: Array, inputs: int, order: Order = "forward") -> Array:
    """Bits [K, ⌈O/32⌉] of the transposed mask."""
    transposed = _garbage(inputs, -(-len(bits) // 32))
    _call("transpose_ones", [bits, transposed], len(bits), inputs, order.encode())
    return transposed


def masked_ones_linear(
    x: Array, bits: Array, *, order: Order = "forward", small: bool = False
) -> Array:
    """y [T, O] = x Mᵀ; `small` takes the tiles of small_cut.h in place of the real ones."""
    (tokens, inputs), outputs = x.shape, len(bits)
    y = np.full((tokens, outputs), np.nan, x.dtype)
    sizes = (tokens, outputs, inputs)
    _call("masked_ones_linear", [x, bits, y], *sizes, DTYPES[x.dtype.name], small, order.encode())
    return y


def masked_ones_conv2d(
    x: Array,
    bits: Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *,
    order: Order = "forward",
    small: bool = False,
) -> Array:
    """y [N, O, H', W'] = conv2d(x, M)."""
    out = out_sizes(x, kernel, stride, padding, dilation)
    numbers = [*x.shape, len(bits), *out, *kernel, *stride, *padding, *dilation, groups]
    y = np.full((x.shape[0], len(bits), *out), np.nan, x.dtype)
    arrays = [x, bits, y, np.array(numbers, np.int32)]
    _call("masked_ones_conv2d", arrays, DTYPES[x.dtype.name], small, order.encode())
    return y


def _garbage(rows: int, words: int) -> Array:
    return np.full((rows, words), 0x55AA55AA, np.uint32)


def _call(name: str, arrays: list[Array], *rest: object) -> None:
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("arrays must be contiguous")
    pointers = [array.ctypes.data for array in arrays]
    message = getattr(library(), f"emulated_{name}")(*pointers, *rest)
    if message is not None:
        raise RuntimeError(message.decode())
