"""Layers whose weights are the bits of a mask: the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pack_ones(mask: Tensor) -> Tensor:
    """Bit r % 32 of word r / 32 of row o is M[o, r].

    Args:
        mask: M [O, ...], bool; r runs over all but the first dimension, K inputs.

    Returns:
        int32 [O, ⌈K/32⌉]; bits past K are 0.
    """
    rows = mask.flatten(1) if mask.dim() > 1 else mask[:, None]
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 32)).unflatten(1, (-1, 32))
    words = (padded.long() << torch.arange(32, device=mask.device)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def unpack_ones(bits: Tensor, inputs: int) -> Tensor:
    """M [O, inputs], bool, from its bits."""
    shifts = torch.arange(32, device=bits.device, dtype=torch.int32)
    return (bits[:, :, None] >> shifts & 1).bool().flatten(1)[:, :inputs]


def masked_ones_linear(x: Tensor, bits: Tensor) -> Tensor:
    """y = x Mᵀ.

    Args:
        x: [..., K].
        bits: of M [O, K], as `pack_ones` has them.

    Returns:
        y [..., O].
    """
    return x @ unpack_ones(bits, x.shape[-1]).to(x.dtype).T


def masked_ones_linear_backward(dy: Tensor, bits: Tensor, inputs: int) -> Tensor:
    """dx = dy M.

    Args:
        dy: [..., O].
        bits: of M [O, inputs].
        inputs: K.

    Returns:
        dx [..., K].
    """
    return dy @ unpack_ones(bits, inputs).to(dy.dtype)


def masked_ones_conv2d(
    x: Tensor,
    bits: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y = conv2d(x, M).

    Args:
        x: [N, C, H, W].
        bits: of M [O, C/groups, h, w].
        kernel: h and w.
        stride: of height and width.
        padding: of zeros around height and width.
        dilation: of height and width.
        groups: that the channels are parted into.

    Returns:
        y [N, O, H', W'].
    """
    channels = x.shape[1] // groups
    ones = unpack_ones(bits, channels * math.prod(kernel)).to(x.dtype)
    weight = ones.reshape(bits.shape[0], channels, *kernel)
    return torch.conv2d(x, weight, None, stride, padding, dilation, groups)
