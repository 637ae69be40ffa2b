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
from pxfast.paths.pathsum import narrow


def is_attention(x: Any) -> bool:
    """Whether x holds logits or probabilities of attention, and no path."""
    opening = getattr(x, "opening", None)
    return opening is not None and opening.attention and x.path is None


def mixed_heads(network: Network, x: Any, dim: int, layer: Callable[[Any], Any]) -> Any:
    """A linear layer across dimension ``dim`` of attention x; ``layer`` is its rule."""
    opening, path = x.opening, None
    logits = opening.activation is None
    if logits and network.squares:
        path = opening.here().path
    result = layer(network.tensor(x.value, path))
    if logits and network.squares:
        entering = Entries(result.path, tuple(result.value.shape))
        opening = replace(opening, entering=entering, moves=())

    def together(fixed: Tensor | None) -> Tensor | None:
        if fixed is None:
            return None
        return narrow(fixed.expand(x.value.shape)).mean(dim, keepdim=True)

    result = network.tensor(result.value, None)
    result.ended = x.ended
    result.opening = replace(opening, masks=together(opening.masks), mean=together(opening.mean))
    return result
