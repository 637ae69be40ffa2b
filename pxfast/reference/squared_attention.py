"""Attention as path sums see it, A∘A in place of A: the formulas."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_attention(
    q: Tensor, k: Tensor, path: Tensor, v: Tensor | None, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """A v and (A∘A) path, with A = softmax(scale · q kᵀ + mask).

    Args:
        q: [N, H, T, D].
        k: [N or 1, H or 1, S, D].
        path: [N or 1, H or 1, S, P].
        v: [N or 1, H or 1, S, E], or None.
        mask: broadcastable to [N, H, T, S]; bool, where False forbids, or added.
        scale: of the logits.

    Returns:
        A v [N, H, T, E], or an empty tensor, and (A∘A) path [N, H, T, P].
    """
    a = probabilities(q.to(path.dtype), k.to(path.dtype), mask, scale)
    output = path.new_empty(0) if v is None else a @ v.to(path.dtype)
    return output.to(q.dtype), a.square() @ path


def squared_attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """dpath = (A∘A)ᵀ dy.

    Args:
        dy: [N, H, T, P].
        q: [N, H, T, D].
        k: [N or 1, H or 1, S, D].
        mask: as above.
        scale: as above.

    Returns:
        dpath [N, H, S, P].
    """
    a = probabilities(q.to(dy.dtype), k.to(dy.dtype), mask, scale)
    return a.square().mT @ dy


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """A [N, H, T, S]; the row of a query that may look nowhere is 0."""
    logits = scale * (q @ k.mT)
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits = logits + mask
    nowhere = (logits == -torch.inf).all(-1, keepdim=True)
    return logits.softmax(-1).masked_fill(nowhere, 0)
