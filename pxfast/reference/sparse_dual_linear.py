"""A masked linear layer of a value and of the path sum beside it: the formulas."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear


def sparse_dual_linear(
    value: Tensor,
    path: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    squared: bool = False,
) -> tuple[Tensor, Tensor]:
    """y = value (W∘M)ᵀ + bias, path_out = path Mᵀ or path (W∘W∘M)ᵀ.

    Args:
        value: [..., K].
        path: [..., K], or size 1 along dimensions in which it is constant.
        weight: W [O, K].
        mask: M [O, K], bool; False makes a weight 0 whatever it holds.
        bias: [O] or None.
        squared: the joint network's path sum, through squared weights, instead of the activation
            network's, through the mask.

    Returns:
        y and path_out, both [..., O].
    """
    kept = weight.where(mask, 0)
    through = kept * kept if squared else mask.to(path.dtype)
    return linear(value, kept, bias), linear(path.expand(value.shape), through)
