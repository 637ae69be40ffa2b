"""A linear layer with squared weights: the formulas."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_linear(x: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """y = x (W∘W∘M)ᵀ.

    Args:
        x: [..., K].
        weight: W [O, K].
        mask: M [O, K], bool; False makes a weight 0 whatever it holds.

    Returns:
        y [..., O].
    """
    return x @ _squared(weight, mask, x.dtype).T


def squared_linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, saliency: Tensor
) -> Tensor:
    """dx = dy (W∘W∘M), saliency += (dyᵀ x)∘W∘W∘M.

    Args:
        dy: [..., O].
        x: [..., K].
        weight: W [O, K].
        mask: M [O, K], bool.
        saliency: S [O, K], added to in place.

    Returns:
        dx [..., K].
    """
    squared = _squared(weight, mask, x.dtype)
    if x.numel() > 0:
        saliency += torch.einsum("...o,...k->ok", dy, x) * squared
    return dy @ squared


def _squared(weight: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """W∘W∘M in the path sums' dtype."""
    squared = weight.to(dtype) ** 2
    return squared if mask is None else squared.where(mask, 0)
