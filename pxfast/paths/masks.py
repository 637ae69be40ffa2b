"""The fixed part of attention masks.

A learned bias that is added to attention logits starts no path and forbids nothing; a fixed mask
may forbid entries. Models often add the two before the logits see either, so the fixed part of a
tensor that parameters went into is followed through the functions that masks are made with: the
same function, with every learned part at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from pxfast.paths.network import NeedsValuesError, Network

_MAKING = {
    "add", "sub", "subtract", "masked_fill", "where", "view", "reshape", "flatten", "unflatten",
    "expand", "expand_as", "view_as", "repeat", "repeat_interleave", "broadcast_to", "unsqueeze",
    "squeeze", "permute", "transpose", "movedim", "swapaxes", "contiguous", "to", "float", "double",
    "half", "bfloat16", "type", "type_as", "clone", "detach", "narrow", "__getitem__", "cat",
    "stack", "pad", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__",
}  # fmt: skip


class FixedParts:
    """The fixed parts of tensors that are made of parameters and of fixed masks."""

    def __init__(self, learned: Callable[[Tensor], bool]):
        self._learned = learned
        self._parts: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def of(self, tensor: Tensor) -> Tensor | None:
        """The fixed part of a tensor; None if all of it is learned."""
        return self._parts.get(tensor) if self._learned(tensor) else tensor

    def follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note the fixed part of what a function made of parameters and other tensors."""
        name = getattr(func, "__name__", "")
        if not name.endswith("__"):
            name = name.removesuffix("_")
        if name not in _MAKING or not isinstance(result, Tensor) or result.dim() < 2:
            return
        floating = [
            x
            for x in tree_leaves((args, kwargs))
            if isinstance(x, Tensor) and x.dtype.is_floating_point
        ]
        filled = name in ("masked_fill", "where")
        if not filled and all(self.of(tensor) is None for tensor in floating):
            return

        def without_learned(tensor: Tensor) -> Tensor:
            if not tensor.dtype.is_floating_point:
                return tensor
            part = self.of(tensor)
            return torch.zeros_like(tensor) if part is None else part.clone()

        args, kwargs = tree_map_only(Tensor, without_learned, (args, kwargs))
        self._parts[result] = func(*args, **kwargs)


def fixed_part(network: Network, mask: Any) -> Tensor | None:
    """What a mask adds to logits whatever the data and the learned parts are, as path sums are
    kept; None if that is nothing."""
    from pxfast.paths.tensor import PathTensor

    if not isinstance(mask, Tensor) or not network.squares:
        return None
    if isinstance(mask, PathTensor):
        if not mask.constant:
            return None  # computed from the data: open in g
        part = mask.value
        if part.is_meta:
            raise NeedsValuesError
    else:
        part = network.weights.fixed.of(mask)
    if part is None:
        return None
    if part.dtype is torch.bool:
        zeros = torch.zeros(part.shape, dtype=network.dtype, device=part.device)
        part = zeros.masked_fill(~part, -torch.inf)
    return network.like_path(part)
