"""nn.MultiheadAttention and its fast paths, as projections, attention and a projection.

Written out here and interpreted: torch's own functions would only see a tensor subclass and decline
it.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.paths.network import Network
from pxfast.paths.registry import rule
from pxfast.paths.rules.composed import interpreted


@interpreted(F.multi_head_attention_forward)
def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Of query [T, N, E], key and value [S, N, …], or all of them without N."""
    batched = query.dim() == 3
    if not batched:
        query, key, value = _unbatched(query, key, value)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    if use_separate_proj_weight:
        weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        weights = in_proj_weight
    projected = projections(query, key, value, weights, in_proj_bias)
    if bias_k is not None and bias_v is not None:
        added = [bias.expand(1, query.shape[1], -1) for bias in (bias_k, bias_v)]
        projected = [projected[0], *map(_appended, projected[1:], added)]
    samples = query.shape[1]
    q, k, v = (
        x.reshape(x.shape[0], samples, num_heads, -1).permute(1, 2, 0, 3) for x in projected
    )  # [N, H, tokens, C]
    k = k if static_k is None else static_k.unflatten(0, (samples, num_heads))
    v = v if static_v is None else static_v.unflatten(0, (samples, num_heads))
    if add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    mask = merged_mask(attn_mask, key_padding_mask, k.shape, q.dtype)
    attended, attention = attend(q, k, v, mask, need_weights)
    result = F.linear(attended.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if attention is not None and average_attn_weights:
        attention = attention.mean(1)
    if batched:
        return result, attention
    return result.squeeze(1), None if attention is None else attention.squeeze(0)


def _unbatched(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With a batch of one; what was one tensor stays one, so that its projection is one product."""
    wide = query.unsqueeze(1)
    keys = wide if key is query else key.unsqueeze(1)
    return wide, keys, keys if value is key else value.unsqueeze(1)


def projections(query: Tensor, key: Tensor, value: Tensor, weight: Any, bias: Any) -> list[Tensor]:
    """q, k and v by a packed weight [3E, E] or by three."""
    if query is key is value and isinstance(weight, Tensor):
        return list(F.linear(query, weight, bias).chunk(3, -1))
    weights = weight.chunk(3) if isinstance(weight, Tensor) else weight
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    inputs = (query, key, value)
    return [F.linear(*parts) for parts in zip(inputs, weights, biases, strict=True)]


def _appended(x: Tensor, token: Tensor) -> Tensor:
    return torch.cat([x, token])


def merged_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, shape: torch.Size, dtype: torch.dtype
) -> Tensor | None:
    """What is added to the logits [N, H, T, S], for keys of the given shape [N, H, S, C]. A True
    forbids; tokens that were appended are allowed."""
    samples, heads, tokens, _ = shape
    masks = []
    if attn_mask is not None:
        mask = added(attn_mask, dtype)
        masks.append(mask.unflatten(0, (samples, heads)) if mask.dim() == 3 else mask)
    if key_padding_mask is not None:
        masks.append(added(key_padding_mask, dtype)[:, None, None])
    masks = [F.pad(mask, (0, tokens - mask.shape[-1])) for mask in masks]
    return reduce(torch.add, masks) if masks else None


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as it is added to logits."""
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """A v and, if it is wanted, A."""
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask), None
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    attention = (logits if mask is None else logits + mask).softmax(-1)
    return attention @ v, attention


@interpreted(torch._native_multi_head_attention)  # pyright: ignore[reportPrivateImportUsage]
def native_multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The fast path, of [N, T, E]; a mask of type 0 is [T, S], of type 1 [N, S], of type 2 full."""
    q, k, v = (
        x.unflatten(-1, (num_head, -1)).transpose(1, 2)
        for x in projections(query, key, value, qkv_weight, qkv_bias)
    )
    forbidden = None
    if mask is not None:
        forbidden = added(mask, q.dtype)
        forbidden = forbidden[:, None, None] if mask_type == 1 else forbidden
    attended, attention = attend(q, k, v, forbidden, need_weights)
    if attention is not None and average_attn_weights:
        attention = attention.mean(1)
    return F.linear(attended.transpose(1, 2).flatten(2), proj_weight, proj_bias), attention


@interpreted(torch._transformer_encoder_layer_fwd)  # pyright: ignore[reportPrivateImportUsage]
def transformer_encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """nn.TransformerEncoderLayer's fast path, of [N, T, E]."""

    def attention(x: Tensor) -> Tensor:
        return native_multi_head_attention(
            x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask,
            False, mask_type=mask_type,
        )[0]  # fmt: skip

    def feed_forward(x: Tensor) -> Tensor:
        x = F.linear(x, ffn_weight_1, ffn_bias_1)
        return F.linear(F.gelu(x) if use_gelu else F.relu(x), ffn_weight_2, ffn_bias_2)

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), weight, bias, eps)

    if norm_first:
        src = src + attention(norm(src, norm_weight_1, norm_bias_1))
        return src + feed_forward(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attention(src), norm_weight_1, norm_bias_1)
    return norm(src + feed_forward(src), norm_weight_2, norm_bias_2)


@rule(torch._nested_tensor_from_mask_left_aligned)  # pyright: ignore[reportPrivateImportUsage]
def nested(network: Network, func: Any, x: Any, mask: Any) -> bool:
    """nn.TransformerEncoder asks whether it may drop padded tokens: no, as while it trains."""
    return False
