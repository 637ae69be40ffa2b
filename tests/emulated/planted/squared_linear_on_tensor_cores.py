"""Mistakes in squared_linear of many tokens: fragments, copies, swizzling."""

from __future__ import annotations

from emulated.build import Change
from emulated.planted.bug import WRONG, Bug

OP = "cuda/squared_linear.cuh"
MMA = "cuda/mma_tile.cuh"

BUGS = (
    Bug(
        "registers of a fragment in another order",
        Change(
            MMA,
            "rows[2 * tile + 1][0], rows[2 * tile][1]",
            "rows[2 * tile][1], rows[2 * tile + 1][0]",
        ),
        WRONG,
    ),
    Bug(
        "a lane's results taken for its neighbour's",
        Change(MMA, "n * kGroup + lane % 4 * 8 + j", "n * kGroup + (lane % 4 ^ 1) * 8 + j"),
        WRONG,
    ),
    Bug(
        "no wait for the copies of a slab",
        Change(MMA, "    wait_for_copies<Tile::kStages - 2>();\n", ""),
        WRONG,
    ),
    Bug(
        "a wait for all copies but those of one slab too many",
        Change(MMA, "wait_for_copies<Tile::kStages - 2>", "wait_for_copies<Tile::kStages - 1>"),
        WRONG,
    ),
    Bug(
        "no barrier before a copied slab is read",
        Change(MMA, "    __syncthreads();  // the slab", "    // the slab"),
        WRONG,
    ),
    Bug(
        "a copy to the slab that is being read",
        Change(MMA, "block.copy(stages[free]", "block.copy(stages[stage]"),
        WRONG,
    ),
    Bug(
        "the slab that others still read",
        Change(MMA, "free = Tile::kStages - 1;", "free = Tile::kStages - 2;"),
        WRONG,
    ),
    Bug(
        "a slab's end copied from the next row",
        Change(MMA, "outer < rows && inner < indices)", "outer < rows)"),
        WRONG,
    ),
    Bug(
        "rows past the last copied",
        Change(MMA, "outer < indices && inner < rows)", "outer < indices)"),
        r"heap-buffer-overflow",
        check="address",
    ),
    Bug(
        "tensor cores although arrays are not aligned",
        Change(OP, "many_tokens(T, O, K) && all_aligned(x, y)", "many_tokens(T, O, K)"),
        r"ERROR cp.async.* is not a multiple",
    ),
    Bug(
        "rows read where they were not swizzled to",
        Change(
            MMA,
            "swizzled<T, kAlong, kRows>(first_row + outer, first_r)",
            "(first_row + outer) * kMmaR + first_r",
        ),
        WRONG,
    ),
    Bug(
        "a mask of the block's first row",
        Change(MMA, "kept[i][j] ? values", "kept[0][j] ? values"),
        WRONG,
    ),
)
