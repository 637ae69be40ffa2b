"""Σ_j A_ij² path_j, for the probabilities A = softmax(scale · q kᵀ + mask) of attention.

A is formed for some rows at a time, in the forward and again in the backward, so that memory grows
with the number of tokens and not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ROW_BYTES = 64 * 2**20  # of probabilities that are formed at a time


def squared_attention(
    query: Tensor,
    key: Tensor,
    path: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Path sums behind softmax attention.

    Args:
        query: [..., T, C], of any floating dtype.
        key: [..., S, C].
        path: [..., S, D], float32 or float64; the only argument that gets a gradient.
        mask: bool (True: allowed) or added to the logits, broadcastable to [..., T, S].
        is_causal: token i attends to tokens up to i.
        scale: of the logits; 1/√C where it is not given.

    Returns:
        [..., T, D] in the dtype of ``path``.
    """
    return SquaredAttention.apply(path, query, key, mask, is_causal, scale)


class SquaredAttention(torch.autograd.Function):
    """`squared_attention` and its derivative for the path sums: dpath_j = Σ_i A_ij² dy_i."""

    @staticmethod
    def forward(ctx: Any, path: Tensor, *attention: Any) -> Tensor:
        """Shapes: path [..., S, D] → [..., T, D]."""
        ctx.set_materialize_grads(False)
        ctx.attention, ctx.like = attention, path
        return torch.cat([squares @ path for _, squares in _squares(path, *attention)], -2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> Any:  # type: ignore[override]
        """Shapes: dy [..., T, D] → dpath [..., S, D]."""
        if dy is None:
            return (None,) * 6
        parts = (
            (squares.mT @ dy[..., rows, :]).sum_to_size(ctx.like.shape)
            for rows, squares in _squares(ctx.like, *ctx.attention)
        )
        return sum(parts, torch.zeros_like(ctx.like)), *[None] * 5


def _squares(
    like: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool,
    scale: float | None,
) -> Iterator[tuple[slice, Tensor]]:  # fmt: skip
    """A², some rows at a time, in the dtype of path sums."""
    query, key = query.detach().to(like.dtype), key.detach().to(like.dtype)
    query = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    tokens, others = query.shape[-2], key.shape[-2]
    lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    step = max(1, ROW_BYTES // max(1, like.element_size() * math.prod(lead) * others))
    for begin in range(0, tokens, step):
        rows = slice(begin, min(begin + step, tokens))
        logits = query[..., rows, :] @ key.mT
        if mask is not None:
            part = mask.detach()[..., rows, :] if mask.shape[-2] > 1 else mask.detach()
            if part.dtype is torch.bool:
                logits = logits.masked_fill(~part, -torch.inf)
            else:
                logits = logits + part.to(like.dtype)
        if causal:
            later = torch.ones(tokens, others, dtype=torch.bool, device=like.device).triu(1)
            logits = logits.masked_fill(later[rows], -torch.inf)
        probabilities = logits.softmax(-1)
        if mask is not None:  # torch gives 0 where a row allows nothing
            empty = logits.amax(-1, keepdim=True) == -torch.inf
            probabilities = probabilities.masked_fill(empty, 0)
        yield rows, probabilities.square()
