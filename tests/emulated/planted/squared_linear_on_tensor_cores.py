"""Mistakes in squared_linear of many tokens: fragments, copies, swizzling."""

from __future__ import annotations

from emulated.build import Change
from emulated.planted.bug import WRONG, Bug

OP = "cuda/squared_linear.cuh"
MMA = "cuda/mma_tile.cuh"
PRODUCT = "cuda/mma_product.cuh"

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
        Change(PRODUCT, "n * kGroup + lane % 4 * 8 + j", "n * kGroup + (lane % 4 ^ 1) * 8 + j"),
        WRONG,
    ),
    Bug(
        "no wait for the copies of a slab",
        Change(PRODUCT, "    wait_for_copies<Tile::kStages - 2>();\n", ""),
        WRONG,
    ),
    Bug(
        "a wait for all copies but those of one slab too many",
        Change(PRODUCT, "wait_for_copies<Tile::kStages - 2>", "wait_for_copies<Tile::kStages - 1>"),
        WRONG,
    ),
    Bug(
        "no barrier before a copied slab is read",
        Change(PRODUCT, "    __syncthreads();  // the slab", "    // the slab"),
        WRONG,
    ),
    Bug(
        "a copy to the slab that is being read",
        Change(PRODUCT, "block.copy(stages[free]", "block.copy(stages[stage]"),
        WRONG,
    ),
    Bug(
        "the slab that others still read",
        Change(PRODUCT, "free = Tile::kStages - 1;", "free = Tile::kStages - 2;"),
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
    Bug(
        "masked weights of pairs swapped",
        Change(
            MMA,
            "kept[i][2 * half] * 0xffffu | kept[i][2 * half + 1] * 0xffff0000u",
            "kept[i][2 * half + 1] * 0xffffu | kept[i][2 * half] * 0xffff0000u",
        ),
        r"WRONG bf16 .*masked.*medium",
        weights="bf16",
    ),
    Bug(
        "a piece too few for the digits of a float",
        Change(
            OP,
            "return act(std::integral_constant<int, 3>());",
            "return act(std::integral_constant<int, 2>());",
        ),
        r"WRONG .*highest",
    ),
    Bug(
        "a piece too few for 16 digits",
        Change(MMA, "int small = kPieces - 1;", "int small = kPieces == 2 ? 0 : kPieces - 1;"),
        r"WRONG .*high ",
    ),
    Bug(
        "the products of first and second pieces left out",
        Change(MMA, "p < A::kPieces && small - p < B::kPieces", "p < A::kPieces && small == 2 * p"),
        r"WRONG ",
    ),
    Bug(
        "path sums that are multiplied before they are rounded",
        Change(PRODUCT, "kRoundThreads, stream,", "kRoundThreads, nullptr,"),
        r"ERROR a launch on another stream",
    ),
    Bug(
        "rounded path sums over those of the other operand",
        Change(OP, "scratch += rounded_bytes(T, O, K, columns, precision);", ""),
        r"WRONG .*medium",
    ),
)
