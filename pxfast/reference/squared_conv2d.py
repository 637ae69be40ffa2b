"""A convolution with squared weights: the formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def squared_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y = conv2d(x, W∘W∘M).

    Args:
        x: [N, C, H, W].
        weight: W [O, C/groups, h, w].
        mask: M, weight's shape, bool; False makes a weight 0 whatever it holds.
        stride: of height and width.
        padding: of zeros around height and width.
        dilation: of height and width.
        groups: that the channels are parted into.

    Returns:
        y [N, O, H', W'].
    """
    squared = _squared(weight, mask, x.dtype)
    return torch.conv2d(x, squared, None, stride, padding, dilation, groups)


def squared_conv2d_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    saliency: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    with_dx: bool = True,
) -> Tensor:
    """dx = conv_transpose2d(dy, W∘W∘M), saliency += dW∘W∘W∘M.

    Args:
        dy: [N, O, H', W'].
        x: [N, C, H, W].
        weight: W [O, C/groups, h, w].
        mask: M, weight's shape, bool.
        saliency: S, weight's shape, added to in place.
        stride: of height and width.
        padding: of zeros around height and width.
        dilation: of height and width.
        groups: that the channels are parted into.
        with_dx: False where dx is not needed.

    Returns:
        dx [N, C, H, W], or an empty tensor.
    """
    squared = _squared(weight, mask, x.dtype)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, squared, None, stride, padding, dilation, False, [0, 0], groups,
        [with_dx, True, False],
    )  # fmt: skip
    if dy.numel() > 0:
        saliency += dw * squared
    return dx if with_dx else x.new_empty(0)


def _squared(weight: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """W∘W∘M in the path sums' dtype."""
    squared = weight.to(dtype) ** 2
    return squared if mask is None else squared.where(mask, 0)
