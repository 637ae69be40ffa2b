"""Attention as path sums see it: the probabilities squared, a gate on the value path.

Dimensions: N samples, H heads, T queries, S keys, D features of a head, P of a path sum, E of a
value. Path sums are float64 where q is, and float32 otherwise (float32, bfloat16 and float16).
They are *narrow*: size 1 along samples, heads or features on which they do not depend.
csrc/squared_attention.h is the kernels' contract.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pxfast.ops._checks import (
    FLOATS,
    PATH_DTYPE,
    check_beside,
    check_device,
    check_dtype,
    name_of,
)
from pxfast.ops._declare import declare
from pxfast.reference import squared_attention as reference

_BLOCK = 2**22  # logits that the formula holds at a time where there are no kernels


def squared_attention(
    q: Tensor,
    k: Tensor,
    path: Tensor,
    v: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor | None, Tensor]:
    """(A∘A) path and, in the same pass, A v, with A = softmax(scale · q kᵀ + mask).

    A is never stored: memory grows with T + S. Differentiable by path, to any order; q, k, v and
    the mask are data. The row of a query that may look nowhere is 0, as in torch's
    scaled_dot_product_attention.

    The leading dimensions [...] are any number of samples and heads, and broadcast. Any strides
    are read as they are where the features of a head lie side by side; others cost a copy, as does
    broadcasting a part of more than two leading dimensions.

    Args:
        q: queries [..., T, D], float32, float64, bfloat16 or float16.
        k: keys [..., S, D], q's dtype.
        path: path sums behind the values [..., S, P], float32 (float64 for a float64 q).
        v: values [..., S, E], q's dtype, or None where A v is not wanted.
        mask: [..., T, S] or size 1 instead; bool, where False forbids an entry, or added to the
            logits.
        scale: of the logits; 1/√D unless given.

    Returns:
        A v [..., T, E], or None, and the path sums [..., T, P].

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or q, k, v or the mask require grad.

    Example:
        >>> q, k = torch.zeros(1, 2), torch.zeros(4, 2)
        >>> output, paths = squared_attention(q, k, torch.ones(4, 1), v=torch.ones(4, 1))
        >>> output, paths
        (tensor([[1.]]), tensor([[0.2500]]))
    """
    data = {"q": q, "k": k, "v": v, "mask": mask}
    for name, tensor in data.items():
        if tensor is not None and torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"squared_attention: {name} must not require grad, attention is a gate: pass "
                f"{name}.detach()"
            )
    if scale is None:
        scale = 1 / math.sqrt(max(1, q.shape[-1]))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(path.dtype)
    given = [q, k, path, *(t for t in (v, mask) if t is not None)]
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in given))
    arguments = [
        _by_heads(t, lead, full) for t, full in ((q, True), (k, False), (path, False), (v, False))
    ]
    attend = _apply if torch.is_grad_enabled() and path.requires_grad else _call
    output, paths = attend(*arguments, _by_heads(mask, lead, False), scale)
    return None if v is None else _as_given(output, lead), _as_given(paths, lead)


def _by_heads(tensor: Tensor | None, lead: torch.Size, full: bool) -> Tensor | None:
    """[..., a, b] as [N or 1, H or 1, a, b]; [N, H, a, b] if `full`."""
    if tensor is None:
        return None
    shape = tensor.shape[-2:]
    if full or (len(lead) > 2 and tensor.shape[:-2].numel() > 1):
        tensor = tensor.expand(*lead, *shape)
    if tensor.shape[:-2].numel() == 1:
        return tensor.reshape(1, 1, *shape)
    if tensor.dim() < 4:
        return tensor[(None,) * (4 - tensor.dim())]
    return tensor.flatten(0, -4)


def _as_given(tensor: Tensor, lead: torch.Size) -> Tensor:
    """[N, H, a, b] as [*lead, a, b]."""
    return tensor.reshape(*lead, *tensor.shape[-2:])


def _call(*arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.pxfast.squared_attention(*arguments)  # type: ignore[no-any-return]


def _apply(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _Differentiable.apply(*arguments)  # type: ignore[no-any-return]


class _Differentiable(torch.autograd.Function):
    """The path sums as a linear function of path; A is computed again where it is needed again."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        path: Tensor,
        v: Tensor | None,
        mask: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Shapes: as `squared_attention`, four dimensions each."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, mask)
        ctx.scale, ctx.narrow = scale, path.shape
        output, paths = _call(q, k, path, v, mask, scale)
        ctx.mark_non_differentiable(output)
        return output, paths

    @staticmethod
    def backward(ctx: Any, _: Any, dy: Tensor | None) -> Any:  # type: ignore[override]
        """dpath = (A∘A)ᵀ dy, summed where path was narrow."""
        if dy is None:  # the backward has ended before
            return None, None, None, None, None, None
        dpath = _Transposed.apply(dy, *ctx.saved_tensors, ctx.scale)
        return None, None, dpath.sum_to_size(ctx.narrow), None, None, None


class _Transposed(torch.autograd.Function):
    """dpath as a linear function of dy."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        """Shapes: dy [N, H, T, P] → [N, H, S, P]."""
        ctx.save_for_backward(q, k, mask)
        ctx.scale = scale
        return torch.ops.pxfast.squared_attention_backward(dy, q, k, mask, scale)

    @staticmethod
    def backward(ctx: Any, ddpath: Tensor) -> Any:  # type: ignore[override]
        """ddy = (A∘A) ddpath."""
        q, k, mask = ctx.saved_tensors
        attend = _apply if ddpath.requires_grad else _call
        return attend(q, k, ddpath, None, mask, ctx.scale)[1], None, None, None, None


def _check_attention(op: str, q: Tensor, k: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless these fit."""
    if q.dim() != 4:
        raise ValueError(f"{op}: q must have shape [N, H, T, D], got {list(q.shape)}")
    check_dtype(op, "q", q, FLOATS)
    D = q.shape[3]
    _check_shape(op, "k", k, q, k.shape[2:3], [D], f"S, {D}")
    check_beside(op, "k", k, q.dtype, q, "q")
    if mask is None:
        return
    T, S = q.shape[2], k.shape[2]
    _check_shape(op, "mask", mask, q, [T, 1], [S, 1], f"{T} or 1, {S} or 1")
    if mask.dtype not in (torch.bool, PATH_DTYPE[q.dtype]):
        raise ValueError(
            f"{op}: mask must be bool or {name_of(PATH_DTYPE[q.dtype])} where q is "
            f"{name_of(q.dtype)}, got {name_of(mask.dtype)}"
        )
    check_device(op, "mask", mask, q, "q")


def _check_shape(
    op: str, name: str, tensor: Tensor, q: Tensor, rows: Any, columns: Any, text: str
) -> None:
    """[N or 1, H or 1, one of rows, one of columns]."""
    N, H = q.shape[:2]
    allowed = ((N, 1), (H, 1), rows, columns)
    if tensor.dim() != 4 or any(
        n not in sizes for n, sizes in zip(tensor.shape, allowed, strict=True)
    ):
        raise ValueError(
            f"{op}: {name} must have shape [{N} or 1, {H} or 1, {text}], got {list(tensor.shape)}"
        )


def _by_tokens(like: Tensor, N: int, H: int, rows: int, columns: int) -> Tensor:
    """An empty [N, H, rows, columns] whose heads lie side by side, as the next layer wants them."""
    return like.new_empty(N, rows, H, columns).transpose(1, 2)


def _fake(
    q: Tensor, k: Tensor, path: Tensor, v: Tensor | None, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    op = "squared_attention"
    _check_attention(op, q, k, mask)
    S = k.shape[2]
    for name, tensor, dtype, width in (
        ("path", path, PATH_DTYPE[q.dtype], "P"),
        ("v", v, q.dtype, "E"),
    ):
        if tensor is not None:
            _check_shape(op, name, tensor, q, [S], tensor.shape[3:4], f"{S}, {width}")
            check_beside(op, name, tensor, dtype, q, "q")
    N, H, T = q.shape[:3]
    output = q.new_empty(0) if v is None else _by_tokens(q, N, H, T, v.shape[3])
    return output, _by_tokens(path, N, H, T, path.shape[3])


def _fake_backward(dy: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    op = "squared_attention_backward"
    _check_attention(op, q, k, mask)
    N, H, T = q.shape[:3]
    if dy.dim() != 4 or list(dy.shape[:3]) != [N, H, T]:
        raise ValueError(f"{op}: dy must have shape [{N}, {H}, {T}, P], got {list(dy.shape)}")
    check_beside(op, "dy", dy, PATH_DTYPE[q.dtype], q, "q")
    return _by_tokens(dy, N, H, k.shape[2], dy.shape[3])


def _blocks(q: Tensor, k: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, Tensor | None]]:
    """Rows of queries whose logits fit _BLOCK, with their rows of the mask."""
    N, H, T = q.shape[:3]
    rows = max(1, _BLOCK // max(1, N * H * k.shape[2]))
    for begin in range(0, T, rows):
        block = slice(begin, begin + rows)
        yield block, mask if mask is None or mask.shape[2] == 1 else mask[:, :, block]


def in_blocks(
    q: Tensor, k: Tensor, path: Tensor, v: Tensor | None, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The formula, block after block of queries: what runs where there are no kernels."""
    output, paths = _fake(q, k, path, v, mask, scale)
    for rows, its_mask in _blocks(q, k, mask):
        parts = reference.squared_attention(q[:, :, rows], k, path, v, its_mask, scale)
        if v is not None:
            output[:, :, rows] = parts[0]
        paths[:, :, rows] = parts[1]
    return output, paths


def in_blocks_backward(
    dy: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """The same for the backward."""
    dpath = _fake_backward(dy, q, k, mask, scale).zero_()
    for rows, its_mask in _blocks(q, k, mask):
        dpath += reference.squared_attention_backward(
            dy[:, :, rows], q[:, :, rows], k, its_mask, scale
        )
    return dpath


declare(
    "squared_attention(Tensor q, Tensor k, Tensor path, Tensor? v, Tensor? mask, float scale)"
    " -> (Tensor, Tensor)",
    fake=_fake,
    reference=in_blocks,
)
declare(
    "squared_attention_backward(Tensor dy, Tensor q, Tensor k, Tensor? mask, float scale)"
    " -> Tensor",
    fake=_fake_backward,
    reference=in_blocks_backward,
)
