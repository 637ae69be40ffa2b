"""Mistakes in squared_conv2d."""

from __future__ import annotations

from emulated.build import Change
from emulated.planted.bug import FAILURE, WRONG, Bug

TILE = "cuda/tile.cuh"
CONVOLUTION = "cuda/squared_conv2d.cuh"
DEPTHWISE = "cuda/depthwise.cuh"

BUGS = (
    Bug(
        "padding read as the end of the row before",
        Change(CONVOLUTION, "w < 0 || w >= g.W) return {};", "w >= g.W) return {};"),
        r"WRONG |heap-buffer-overflow",
        check="address",
        source="conv_cases.cpp",
    ),
    Bug(
        "a channel's offset in 32 bits",
        Change(
            CONVOLUTION,
            "(static_cast<int64_t>(n) * channels + channel) * area",
            "static_cast<int>(n * channels + channel) * area",
        ),
        FAILURE,
        source="huge_cases.cpp",
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
        "squares of taps that are still being written",
        Change(DEPTHWISE, ".at[0];\n      __syncthreads();\n", ".at[0];\n"),
        WRONG,
        source="conv_cases.cpp",
    ),
    Bug(
        "squares overwritten while others read them",
        Change(DEPTHWISE, "      __syncthreads();  // all have read those before\n", ""),
        r"WRONG |data race",
        check="thread",
        source="conv_cases.cpp",
    ),
    Bug(
        "sums of warps overwritten before they are added",
        Change(DEPTHWISE, "    __syncthreads();  // the sums before are added\n", ""),
        r"data race",
        check="thread",
        source="conv_cases.cpp",
    ),
    Bug(
        "a position of an input between strides",
        Change(DEPTHWISE, "if (at % stride != 0) return -1;", ""),
        WRONG,
        source="conv_cases.cpp",
    ),
    Bug(
        "one output of several that a channel has",
        Change(DEPTHWISE, "o < (kBack ? multiplier : 1)", "o < 1"),
        WRONG,
        source="conv_cases.cpp",
    ),
    Bug(
        "a position past the last stored",
        Change(DEPTHWISE, "if (at < positions) out[", "if (at <= positions) out["),
        r"heap-buffer-overflow",
        check="address",
        source="conv_cases.cpp",
    ),
    Bug(
        "a position of a plane in 32 bits",
        Change(
            DEPTHWISE,
            "out[(n * channels + channel) * area + (at - n * area)]",
            "out[static_cast<int>((n * channels + channel) * area + (at - n * area))]",
        ),
        FAILURE,
        source="huge_cases.cpp",
    ),
)
