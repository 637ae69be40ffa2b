"""Softmax attention: the probabilities A are a gate on the value path.

h, J: Σ_j A_ij² path_j. g: the mean over the allowed tokens. The query and key projections get
scores of their own, from the path sums behind q and k (side.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast import ops
from pxfast.paths.masks import fixed_part
from pxfast.paths.network import Network
from pxfast.paths.opening import Dots, Opening
from pxfast.paths.pathsum import PathSum
from pxfast.paths.registry import rule
from pxfast.paths.rules.arithmetic import beside, path_of
from pxfast.paths.rules.matmul import entering, weighted


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
    opening = Opening(None, Dots(entering(network, query), entering(network, keys)), attention=True)
    for fixed in (fixed_part(network, attn_mask), _causal(network, shape, is_causal)):
        opening = opening if fixed is None else opening.masked(fixed)
    like = torch.empty((), dtype=network.dtype, device=network.path_device)
    opening = opening.softmax(shape, len(lead) + 1, like)
    path, result = path_of(value), None
    if path is not None and not network.gates:
        assert opening.mean is not None
        path = weighted(network, opening.mean, path, shape[-1])
    elif path is not None and network.values:
        result, path = squared(network, query, key, value, attn_mask, is_causal, scale)
    elif path is not None:
        path = path.map(lambda m: m.new_empty((*shape[:-1], m.shape[-1])))
    if result is None and network.values:
        result = network.value(func, query, key, value, attn_mask, 0.0, is_causal, scale=scale)
    elif result is None:
        result = torch.empty((*shape[:-1], tail), dtype=query.dtype, device="meta")
    if path is None:
        return network.tensor(result, None)
    return network.tensor(result, beside(network, opening, path.normalised()))


def squared(
    network: Network,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor | None, PathSum]:
    """Σ_j A_ij² path_j of the data's probabilities A, and in the same pass A v, unless the model
    wants that in another dtype."""
    path = value.path.map(lambda m: m.expand(*m.shape[:-2], value.value.shape[-2], m.shape[-1]))
    q, k, v, mask = (_data(x) for x in (query, key, value, mask))
    if is_causal:
        causal = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        mask = causal if mask is None else causal & mask
    together = network.autocast is None and q.dtype == k.dtype == v.dtype
    if network.dtype is torch.float64 or not together:
        q, k = q.to(network.dtype), k.to(network.dtype)
    together = together and q.dtype == v.dtype
    result, mantissa = ops.squared_attention(
        q, k, path.mantissa, v if together else None, mask, scale
    )
    return result, PathSum(mantissa, path.exponent)


def _data(x: Any) -> Any:
    value = getattr(x, "value", x)
    return None if value is None else value.detach()


def _causal(network: Network, shape: torch.Size, is_causal: bool) -> Tensor | None:
    """The mask that forbids later tokens, where path sums are weighed by what is allowed."""
    if not is_causal or not network.squares:
        return None
    forbidden = torch.full(shape[-2:], -torch.inf, dtype=network.dtype, device=network.path_device)
    return forbidden.triu(1)
