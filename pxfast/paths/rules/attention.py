"""Softmax attention: the probabilities A are a gate on the value path.

h, J: Σ_j A_ij² path_j. g: the mean over the allowed tokens. The query and key projections get
scores of their own, from the path sums behind q and k (side.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.paths.masks import fixed_part
from pxfast.paths.network import Network
from pxfast.paths.opening import Dots, Opening
from pxfast.paths.registry import rule
from pxfast.paths.rules.arithmetic import beside, path_of
from pxfast.paths.rules.matmul import entering, weighted
from pxfast.paths.rules.squared_attention import squared_attention


@rule(F.scaled_dot_product_attention)
def scaled_dot_product_attention(
    network: Network,
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale · q kᵀ + mask) v, of q [..., T, C], k [..., S, C] and v [..., S, D]."""
    from pxfast.paths.tensor import Interpreter

    with Interpreter.running():
        if enable_gqa:  # a group of query heads shares one key and value head
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3)
                          for x in (key, value))  # fmt: skip
        keys = key.transpose(-2, -1)
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        shape = torch.Size((*lead, query.shape[-2], key.shape[-2]))
        tail = value.shape[-1]
    if network.values:
        result = network.value(func, query, key, value, attn_mask, 0.0, is_causal, scale=scale)
    else:
        result = torch.empty((*shape[:-1], tail), dtype=query.dtype, device="meta")
    path = path_of(value)
    if path is None:
        return network.tensor(result, None)
    opening = Opening(None, Dots(entering(network, query), entering(network, keys)))
    for fixed in (fixed_part(network, attn_mask), _causal(network, shape, is_causal)):
        opening = opening if fixed is None else opening.masked(fixed)
    like = torch.empty((), dtype=network.dtype, device=network.path_device)
    opening = opening.softmax(shape, len(lead) + 1, like)
    if network.gates:
        wide = path.map(lambda m: m.expand(*m.shape[:-2], shape[-1], m.shape[-1]))
        path = wide.map(
            lambda m: attended(network, (query, key), m, attn_mask, is_causal, scale, shape)
        )
    else:
        path = weighted(opening.mean, path, shape[-1])
    return network.tensor(result, beside(network, opening, path.normalised()))


def attended(
    network: Network,
    factors: tuple[Any, Any],
    mantissa: Tensor,
    mask: Any,
    is_causal: bool,
    scale: float | None,
    shape: torch.Size,
) -> Tensor:
    """Σ_j A_ij² path_j of the data's probabilities A, of the given shape."""
    if mantissa.is_meta:
        return mantissa.new_empty((*shape[:-1], mantissa.shape[-1]))
    query, key = (getattr(factor, "value", factor) for factor in factors)
    return squared_attention(query, key, mantissa, getattr(mask, "value", mask), is_causal, scale)


def _causal(network: Network, shape: torch.Size, is_causal: bool) -> Tensor | None:
    """The mask that forbids later tokens, where path sums are weighed by what is allowed."""
    if not is_causal or not network.squares:
        return None
    forbidden = torch.full(shape[-2:], -torch.inf, dtype=network.dtype, device=network.path_device)
    return forbidden.triu(1)
