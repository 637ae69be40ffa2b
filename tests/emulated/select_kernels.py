"""The CUDA launchers of select_threshold and write_masks on numpy arrays, executed on the CPU.

Scores are float32, float64, float16, or bfloat16 as uint16, all of one type; masks of those that
are alive are bool. Arrays are contiguous; they may start anywhere.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import numpy as np
from emulated.build import Program
from emulated.kernels import DTYPES, Array, Order

LIBRARY = Program("select_abi.cpp", flags=("-O0", "-shared", "-fPIC"))


class Scores(ctypes.Structure):
    """px::Scores of csrc/scores.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("alive", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("first", ctypes.c_int64),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled launchers."""
    loaded = ctypes.CDLL(str(LIBRARY.path()))
    array, size, number, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p
    histogram = loaded.emulated_score_histogram
    histogram.argtypes = [
        *[array, size, number, size, number, number, array],
        *[ctypes.c_bool, text],
    ]
    masks = loaded.emulated_write_masks
    masks.argtypes = [array, array, size, number, size, size, size, ctypes.c_bool, text]
    histogram.restype = masks.restype = text
    return loaded


def score_histogram(
    scores: Sequence[Array],
    alive: Sequence[Array | None],
    low: int,
    shift: int,
    bits: int,
    *,
    order: Order = "forward",
    small: bool = False,
) -> Array:
    """int64 counts [2^bits + 3]; `small` takes the cut of select_cut.h in place of the real one."""
    counts = np.zeros((1 << bits) + 3, np.int64)
    dtype = DTYPES[scores[0].dtype.name]
    _raise(
        library().emulated_score_histogram(
            *(_table(scores, alive), len(scores), dtype, low, shift, bits),
            *(counts.ctypes.data, small, order.encode()),
        )
    )
    return counts


def write_masks(
    scores: Sequence[Array],
    alive: Sequence[Array | None],
    key: int,
    ties: int,
    equal: int,
    *,
    order: Order = "forward",
    small: bool = False,
) -> list[Array]:
    """uint8 masks of the scores' shapes; 7 where nothing was written."""
    masks = [np.full(score.shape, 7, np.uint8) for score in scores]
    table = (ctypes.c_void_p * len(masks))(*[mask.ctypes.data for mask in masks])
    dtype = DTYPES[scores[0].dtype.name]
    _raise(
        library().emulated_write_masks(
            *(_table(scores, alive), table, len(scores), dtype, key, ties, equal),
            *(small, order.encode()),
        )
    )
    return masks


def _table(scores: Sequence[Array], alive: Sequence[Array | None]) -> ctypes.Array[Scores]:
    table, first = (Scores * len(scores))(), 0
    for entry, score, mask in zip(table, scores, alive, strict=True):
        assert score.flags.c_contiguous and score.dtype == scores[0].dtype
        assert mask is None or (mask.flags.c_contiguous and mask.shape == score.shape)
        entry.data, entry.count, entry.first = score.ctypes.data, score.size, first
        entry.alive = None if mask is None else mask.ctypes.data
        first += score.size
    return table


def _raise(message: bytes | None) -> None:
    if message is not None:
        raise RuntimeError(message.decode())
