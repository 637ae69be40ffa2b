"""Mistakes in score_histogram and write_masks."""

from __future__ import annotations

from emulated.build import Change
from emulated.planted.bug import FAILURE, WRONG, Bug

KEYS = "cuda/keys.cuh"
COUNT = "cuda/select_threshold.cuh"
MASKS = "cuda/write_masks.cuh"

BUGS = (
    Bug(
        "a histogram that is not cleared before it is counted in",
        Change(COUNT, "bins[b] = 0;\n  __syncthreads();", "bins[b] = 0;"),
        WRONG,
        source="select_cases.cpp",
    ),
    Bug(
        "no barrier before the histogram is added up",
        Change(COUNT, "  }\n  __syncthreads();\n", "  }\n"),
        r"data race",
        check="thread",
        source="select_cases.cpp",
    ),
    Bug(
        "an increment that is not atomic",
        Change(COUNT, "atomicAdd(&bins[bin], 1u);", "++bins[bin];"),
        r"data race",
        check="thread",
        source="select_cases.cpp",
    ),
    Bug(
        "each launch's entries at the beginning of the table",
        Change(KEYS, "carried, count, table + first);", "carried, count, table);"),
        FAILURE,
        source="select_cases.cpp",
    ),
    Bug(
        "a score's position in 32 bits",
        Change(
            MASKS,
            "  const int64_t end = begin + Cut::kChunk < total ? begin + Cut::kChunk : total;\n"
            "  int64_t left",
            "  const int end = begin + Cut::kChunk < total ? begin + Cut::kChunk : total;\n"
            "  int64_t left",
        ),
        FAILURE,
        source="huge_cases.cpp",
    ),
    Bug(
        "ties counted from the next chunk on",
        Change(MASKS, "ties - before[blockIdx.x] : ties", "ties - before[blockIdx.x + 1] : ties"),
        WRONG,
        source="select_cases.cpp",
    ),
    Bug(
        "a warp's sum that is overwritten while others read it",
        Change(MASKS, "  __syncthreads();\n  return before;", "  return before;"),
        r"data race",
        check="thread",
        source="select_cases.cpp",
    ),
    Bug(
        "packs although the masks are not aligned",
        Change(KEYS, " && aligned_to(masks, kVector)", ""),
        r"misaligned address",
        check="address",
        source="select_cases.cpp",
    ),
    Bug(
        "the zeros of two signs told apart",
        Change(KEYS, "kLeastKey<Bits> - bits", "kLeastKey<Bits> - bits - 1"),
        WRONG,
        source="select_cases.cpp",
    ),
)
