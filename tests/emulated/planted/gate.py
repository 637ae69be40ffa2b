"""Mistakes in gate."""

from __future__ import annotations

from emulated.build import Change
from emulated.planted.bug import FAILURE, WRONG, Bug

GATE = "cuda/gate.cuh"

BUGS = (
    Bug(
        "the end of a row taken for a whole vector",
        Change(GATE, "if (k + kVector <= g.K)", "if (k < g.K)"),
        r"heap-buffer-overflow|misaligned address",
        check="address",
        source="gate_cases.cpp",
    ),
    Bug(
        "vectors although rows are not aligned",
        Change(GATE, "(rows == 1 || fits(g.K)) && narrow", "narrow"),
        r"misaligned address",
        check="address",
        source="gate_cases.cpp",
    ),
    Bug(
        "path sums of another sample",
        Change(GATE, "from = a * g.stride_a + ", "from = "),
        WRONG,
        source="gate_cases.cpp",
    ),
    Bug(
        "a position in 32 bits",
        Change(GATE, "at = row * g.K + k,", "at = static_cast<int>(row * g.K + k),"),
        FAILURE,
        source="huge_cases.cpp",
    ),
    Bug(
        "no barrier before the strands of a sum are added",
        Change(GATE, "[lane] = sum;\n  __syncthreads();", "[lane] = sum;"),
        r"data race",
        check="thread",
        source="gate_cases.cpp",
    ),
)
