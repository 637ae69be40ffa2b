"""The CUDA launchers of squared_conv2d on numpy arrays, executed on the CPU.

Shapes are those of csrc/squared_conv2d.h. The weight is float32, float64, float16, or bfloat16 as
uint16; path sums are float32, or float64 where the weight is. Arrays are contiguous.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import numpy as np
from emulated.build import Program
from emulated.kernels import DTYPES, Array, Order, out_sizes, path_dtype

LIBRARY = Program("conv_abi.cpp", flags=("-O1", "-shared", "-fPIC"))


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled launchers."""
    loaded = ctypes.CDLL(str(LIBRARY.path()))
    array = ctypes.c_void_p
    loaded.emulated_squared_conv2d.argtypes = [
        *[array] * 7, ctypes.c_int, ctypes.c_bool, ctypes.c_char_p,
    ]  # fmt: skip
    loaded.emulated_squared_conv2d.restype = ctypes.c_char_p
    return loaded


class Convolution:
    """One call: its arrays and geometry."""

    def __init__(
        self,
        x: Array,
        weight: Array,
        mask: Array | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        *,
        order: Order = "forward",
        small: bool = False,
    ) -> None:
        outputs, kernel = weight.shape[0], weight.shape[2:]
        out = out_sizes(x, kernel, stride, padding, dilation)
        numbers = [*x.shape, outputs, *out, *kernel, *stride, *padding, *dilation, groups]
        self.geometry = np.array(numbers, np.int32)
        self.x, self.weight, self.mask = x, weight, mask
        self.options = (DTYPES[weight.dtype.name], small, order.encode())
        self.out_shape = (x.shape[0], outputs, *out)

    def forward(self) -> Array:
        """y [N, O, H', W']."""
        y = np.full(self.out_shape, np.nan, path_dtype(self.weight))
        self._call(None, y, None)
        return y

    def backward(self, dy: Array, saliency: Array, want_dx: bool) -> Array | None:
        """dx [N, C, H, W], returned if wanted; adds to the saliency in place."""
        dx = np.full(self.x.shape, np.nan, path_dtype(self.weight)) if want_dx else None
        self._call(dy, dx, saliency)
        return dx

    def _call(self, dy: Array | None, out: Array | None, saliency: Array | None) -> None:
        for array in (dy, self.x, self.weight, self.mask, saliency):
            if array is not None and not array.flags.c_contiguous:
                raise ValueError("arrays must be contiguous")
        arrays = (dy, self.x, self.weight, self.mask, out, saliency, self.geometry)
        pointers = [None if array is None else array.ctypes.data for array in arrays]
        message = library().emulated_squared_conv2d(*pointers, *self.options)
        if message is not None:
            raise RuntimeError(message.decode())
