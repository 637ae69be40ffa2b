"""Mistakes in masked_ones."""

from __future__ import annotations

from emulated.build import Change
from emulated.planted.bug import FAILURE, WRONG, Bug

ONES = "cuda/masked_ones.cuh"

BUGS = (
    Bug(
        "bits past the last input that count",
        Change(ONES, "t < T && k < K ? x[t * K + k]", "t < T ? x[t * K + k]"),
        r"WRONG |heap-buffer-overflow",
        check="address",
        source="ones_cases.cpp",
    ),
    Bug(
        "a word of another lane",
        Change(ONES, "__shfl_sync(kAllLanes, held[r], w)", "held[r]"),
        WRONG,
        source="ones_cases.cpp",
    ),
    Bug(
        "a shuffle that some lanes leave out",
        Change(
            ONES, "const int count = at_most(kLanes, words - step);", "const int count = lane + 1;"
        ),
        r"ERROR ",
        source="ones_cases.cpp",
    ),
    Bug(
        "rows of bits without their padding",
        Change(ONES, "bits[o * words + at / kWordBits]", "bits[o * (words - 1) + at / kWordBits]"),
        WRONG,
        source="ones_cases.cpp",
    ),
    Bug(
        "a column past the last transposed",
        Change(ONES, "if (k < K) transposed", "if (w < words) transposed"),
        r"heap-buffer-overflow",
        check="address",
        source="ones_cases.cpp",
    ),
    Bug(
        "an offset of bits in 32 bits",
        Change(
            ONES,
            "bits[(first + r) * words + step + lane]",
            "bits[static_cast<int>((first + r) * words + step + lane)]",
        ),
        FAILURE,
        source="huge_cases.cpp",
    ),
    Bug(
        "all lanes write the word",
        Change(
            ONES, "if (lane == 0 && o < O) bits[at] = word;", "if (o < O) bits[at] = word + lane;"
        ),
        r"data race|WRONG ",
        check="thread",
        source="ones_cases.cpp",
    ),
)
