"""Talking heads: a linear layer across the heads of attention logits or probabilities.

Logits pass their path sums on, so that the layer is part of the side branch. A mix of probabilities
is applied to A before it is squared; in g, where all heads give the mean, it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from pxfast.paths.network import Network
from pxfast.paths.opening import Entries


def is_attention(x: Any) -> bool:
    """Whether x holds logits or probabilities of attention, and no path."""
    opening = getattr(x, "opening", None)
    return opening is not None and opening.attention and x.path is None


def mixed_heads(
    network: Network, linear: Callable[..., Any], x: Any, weight: Any, bias: Any
) -> Any:
    """x Wᵀ + b for attention x [..., H]; ``linear`` is the rule of linear layers."""
    opening, path = x.opening, None
    logits = opening.activation is None
    if logits and network.squares:
        path = opening.here().path
    passing = network.tensor(x.value, path)
    result = linear(network, linear, passing, weight, bias)
    if logits and network.squares:
        entering = Entries(result.path, tuple(result.value.shape))
        opening = replace(opening, entering=entering, moves=())
    result.path, result.ended = None, x.ended
    result.opening = replace(opening, masks=_over(opening.masks), mean=_over(opening.mean))
    return result


def _over(fixed: Tensor | None) -> Tensor | None:
    """What is fixed for all heads together."""
    if fixed is None or fixed.shape[-1] == 1:
        return fixed
    return fixed.mean(-1, keepdim=True)
