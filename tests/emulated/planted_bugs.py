"""Mistakes that CUDA code is prone to, each planted in a copy of the kernels' source.

A bug is a replacement of text that occurs once, the check that must catch it, and how that shows.
The sources themselves hold no trace of this.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulated.build import Change, Program

TILE, OP, DEVICE = "cuda/tile.cuh", "cuda/squared_linear.cuh", "cuda/device.cuh"
MMA, WEIGHTS = "cuda/mma_tile.cuh", "cuda/squared_weights.cuh"
GATE, ATTENTION = "cuda/gate.cuh", "cuda/squared_attention.cuh"
CONVOLUTION, ONES = "cuda/squared_conv2d.cuh", "cuda/masked_ones.cuh"
KEYS, COUNT, MASKS = "cuda/keys.cuh", "cuda/select_threshold.cuh", "cuda/write_masks.cuh"


@dataclass(frozen=True)
class Bug:
    """One mistake. `sign` is a regular expression that the program's output must match."""

    name: str
    change: Change
    sign: str
    check: str = "plain"
    source: str = "cases.cpp"

    @property
    def program(self) -> Program:
        """The cases, compiled from the changed source; for float weights alone, to save time."""
        return Program(self.source, self.check, ("-O0", "-DCASES_WEIGHTS=float"), self.change)


WRONG = r"WRONG "
FAILURE = r"^(?!PASSED)"  # wrong or crashed, whatever came first

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
        "no barrier before the warps' sums are added",
        Change(OP, "sums[t]);\n  __syncthreads();\n", "sums[t]);\n"),
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
        Change(OP, "at += kBackwardThreads)", "at += kBackwardThreads / 2)"),
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
    Bug(
        "padding read as the end of the row before",
        Change(CONVOLUTION, "w < 0 || w >= g.W) return {};", "w >= g.W) return {};"),
        r"WRONG |heap-buffer-overflow",
        check="address",
        source="conv_cases.cpp",
    ),
    Bug(
        "a cotangent between strides",
        Change(CONVOLUTION, "h % g.stride_h != 0 || w % g.stride_w != 0", "h % g.stride_h != 0"),
        WRONG,
        source="conv_cases.cpp",
    ),
    Bug(
        "channels of the first group for all",
        Change(TILE, "in_group(b, group), sink,", "in_group(b, 0), sink,"),
        WRONG,
        source="conv_cases.cpp",
    ),
    Bug(
        "weights of the first group for all gradients of inputs",
        Change(CONVOLUTION, "load<1>(group * outputs + o,", "load<1>(o,"),
        WRONG,
        source="conv_cases.cpp",
    ),
    Bug(
        "a dilation left out",
        Change(
            CONVOLUTION,
            "tap.j * g.dilation_w;\n    if (h < 0 || h >= g.H",
            "tap.j;\n    if (h < 0 || h >= g.H",
        ),
        WRONG,
        source="conv_cases.cpp",
    ),
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
