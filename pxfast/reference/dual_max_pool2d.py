"""Max-pooling of a value, and the path sum of the entry that it picks: the formulas."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import max_pool2d_with_indices


def dual_max_pool2d(
    value: Tensor,
    path: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """y = max_pool2d(value), path_out = path where y was picked.

    Args:
        value: [N, C, H, W].
        path: [N, C, H, W], or size 1 along dimensions in which it is constant.
        kernel: height and width of a window.
        stride: of height and width.
        padding: of height and width.

    Returns:
        y and path_out, both [N, C, H', W'].
    """
    y, index = max_pool2d_with_indices(value, list(kernel), list(stride), list(padding))
    picked = path.expand(value.shape).flatten(2).gather(2, index.flatten(2))
    return y.contiguous(), picked.reshape(y.shape)
