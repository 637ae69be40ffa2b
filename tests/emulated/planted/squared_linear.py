"""Mistakes in squared_linear: its tiles, its sums over splits, its weights."""

from __future__ import annotations

from emulated.build import Change
from emulated.planted.bug import FAILURE, WRONG, Bug

TILE = "cuda/tile.cuh"
OP = "cuda/squared_linear.cuh"
FEW = "cuda/few_tokens.cuh"
DEVICE = "cuda/device.cuh"
WEIGHTS = "cuda/squared_weights.cuh"

BUGS = (
    Bug(
        "no barrier before the first slab is read",
        Change(TILE, "  put(0);\n  __syncthreads();\n", "  put(0);\n"),
        WRONG,
    ),
    Bug(
        "no barrier before a slab is overwritten",
        Change(TILE, "    __syncthreads();\n    now ^= 1;\n", "    now ^= 1;\n"),
        WRONG,
    ),
    Bug(
        "sums of splits added on the default stream",
        Change(TILE, "kAddThreads, stream,", "kAddThreads, nullptr,"),
        r"ERROR a launch on another stream",
    ),
    Bug(
        "no barrier before the warps' sums are added",
        Change(FEW, "sums[t]);\n  __syncthreads();\n", "sums[t]);\n"),
        WRONG,
    ),
    Bug(
        "a barrier that only threads with results reach",
        Change(
            TILE,
            "    __syncthreads();\n    now",
            "    if (thread_m * 4 < rows_a) __syncthreads();\n    now",
        ),
        r"ERROR .*__syncthreads",
    ),
    Bug(
        "a shuffle mask of half a warp",
        Change(DEVICE, "kAllLanes = 0xffffffffu", "kAllLanes = 0x0000ffffu"),
        r"ERROR .*__shfl_xor_sync.* not in (its own )?mask 0xffff",
    ),
    Bug(
        "a tail that is read from the next row",
        Change(TILE, "if (outer < rows && inner < indices)", "if (outer < rows)"),
        WRONG,
    ),
    Bug(
        "a tail that is stored past the end",
        Change(TILE, "if (m < rows_a && n < rows_b)", "if (m < rows_a && n <= rows_b)"),
        r"heap-buffer-overflow",
        check="address",
    ),
    Bug(
        "vectors although the arrays are not aligned",
        Change(
            OP,
            "columns % N == 0 && (aligned_to(arrays, N * sizeof(*arrays)) && ...)",
            "columns % N == 0",
        ),
        r"misaligned address",
        check="address",
    ),
    Bug(
        "a transposed index into shared memory",
        Change(TILE, "shared[inner + i][outer] =", "shared[outer][inner + i] ="),
        FAILURE,
    ),
    Bug(
        "two threads add the same sums",
        Change(FEW, "at += kBackwardThreads)", "at += kBackwardThreads / 2)"),
        r"data race",
        check="thread",
    ),
    Bug(
        "splits that share one plane",
        Change(TILE, "data + (split * M + m) * N + n", "data + m * N + n"),
        r"data race",
        check="thread",
    ),
    Bug(
        "the mask multiplied instead of selected",
        Change(
            WEIGHTS, "return mask.at[i] ? w * w : PathOf<Weight>(0);", "return mask.at[i] * w * w;"
        ),
        WRONG,
    ),
    Bug(
        "an offset in 32 bits",
        Change(WEIGHTS, "const uint8_t* masks, int64_t at)", "const uint8_t* masks, int at)"),
        FAILURE,
        source="huge_cases.cpp",
    ),
)
