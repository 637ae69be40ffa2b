"""A masked convolution of a value and of the path sum beside it: the formulas."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import conv2d


def sparse_dual_conv2d(
    value: Tensor,
    path: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    squared: bool = False,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_path: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """y = conv2d(value, W∘M) + bias, path_out = conv2d(path, M) or conv2d(path, W∘W∘M); and an end.

    Args:
        value: [N, C, H, W].
        path: [N, C, H, W], or size 1 along dimensions in which it is constant.
        weight: W [O, C, kh, kw].
        mask: M [O, C, kh, kw], bool; False makes a weight 0 whatever it holds.
        bias: [O] or None.
        stride: of height and width.
        padding: of height and width.
        dilation: of height and width.
        squared: the joint network's path sum, through squared weights, instead of the activation
            network's, through the mask.
        scale: [O] or None; the rows of W count that many times.
        residual: [N, O, H', W'] or None; added to y.
        residual_path: [N, O, H', W'] or None; added to path_out.
        relu: of y, which gates path_out: it stays where y > 0.

    Returns:
        y and path_out, both [N, O, H', W'].
    """
    scaled = weight if scale is None else weight * scale.reshape(-1, 1, 1, 1)
    kept = scaled.where(mask, 0)
    through = kept * kept if squared else mask.to(path.dtype)
    geometry = list(stride), list(padding), list(dilation)
    y = conv2d(value, kept, bias, *geometry)
    path_out = conv2d(path.expand(value.shape), through, None, *geometry)
    if residual is not None and residual_path is not None:
        y, path_out = y + residual, path_out + residual_path
    return (y.relu(), path_out.where(y > 0, 0)) if relu else (y, path_out)
