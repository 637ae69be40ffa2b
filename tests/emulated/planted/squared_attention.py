"""Mistakes in squared_attention."""

from __future__ import annotations

from emulated.build import Change
from emulated.planted.bug import WRONG, Bug

ATTENTION = "cuda/squared_attention.cuh"

BUGS = (
    Bug(
        "no barrier between a slab of v and one of path sums",
        Change(
            ATTENTION,
            "row, column, [](Path e) { return e; });\n      __syncthreads();",
            "row, column, [](Path e) { return e; });",
        ),
        r"WRONG |data race",
        check="thread",
        source="attention_cases.cpp",
    ),
    Bug(
        "path sums scaled once where the maximum grows",
        Change(
            ATTENTION,
            "[](Path factor) { return factor * factor; }",
            "[](Path factor) { return factor; }",
        ),
        WRONG,
        source="attention_cases.cpp",
    ),
    Bug(
        "a maximum that two of four threads know",
        Change(ATTENTION, "largest, offset);\n      largest", "largest, 1);\n      largest"),
        WRONG,
        source="attention_cases.cpp",
    ),
    Bug(
        "keys past the last that count",
        Change(ATTENTION, "s < c.S ? logit : minus_infinity<Path>()", "logit"),
        WRONG,
        source="attention_cases.cpp",
    ),
    Bug(
        "a row without keys divided by its sum",
        Change(ATTENTION, "sum == 0 ? Path(0) : 1 / sum", "1 / sum"),
        WRONG,
        source="attention_cases.cpp",
    ),
    Bug(
        "a column past the end stored",
        Change(ATTENTION, "if (c.output && e < c.E)", "if (c.output && e <= c.E)"),
        r"heap-buffer-overflow",
        check="address",
        source="attention_cases.cpp",
    ),
    Bug(
        "the mask of the next query",
        Change(ATTENTION, "head.row<uint8_t>(c.mask, t)", "head.row<uint8_t>(c.mask, t + 1)"),
        r"heap-buffer-overflow|WRONG ",
        check="address",
        source="attention_cases.cpp",
    ),
)
