"""Movements of entries, of narrow tensors that stay narrow (pathsum.py).

A narrow tensor stands for one of a larger shape. Written out, moved and cut again it would be
copied whole wherever a reshape or a roll cannot be a view, as at every layer of a transformer with
windows, and its cotangent would be written out even by views. So what is constant is left alone:
a 1, which stands for any size, also for 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from pxfast.paths.pathsum import narrow

Shape = tuple[int, ...]
Dims = tuple[int, ...]
Move = Callable[[Tensor, Shape], Any]  # of a narrow tensor and the shape that it stands for


_SWAPPING = {
    "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT", "H",
    "mH", "adjoint", "unsqueeze", "flip", "fliplr", "flipud", "roll",
}  # fmt: skip
_RESHAPING = {"reshape", "flatten", "unflatten", "ravel", "squeeze"}
_PICKING = {  # of one dimension: where it stands among the arguments, and what it is by default
    "chunk": (1, 0), "unsafe_chunk": (1, 0), "split": (1, 0), "unsafe_split": (1, 0),
    "split_with_sizes": (1, 0), "tensor_split": (1, 0), "unbind": (0, 0), "select": (0, None),
    "narrow": (0, None), "index_select": (0, None),
}  # fmt: skip


def movement(
    name: str, function: Callable[[Tensor], Any], args: Any, kwargs: Any, value: Any
) -> Move:
    """How a torch function moves entries.

    Args:
        name: of the function, or of the property that it reads.
        function: it, on a tensor with these arguments.
        args: those behind the tensor.
        kwargs: those given by name.
        value: what it made of a tensor of the full shape.
    """
    if name in _RESHAPING:
        return reshaped(value.shape)
    if name in ("expand", "broadcast_to"):
        return expanded(value.shape)
    if name in _SWAPPING and (name != "roll" or len(args) > 1 or "dims" in kwargs):
        return within(function)
    if name in _PICKING:
        position, default = _PICKING[name]
        dim = kwargs.get("dim", args[position] if len(args) > position else default)
        if isinstance(dim, int):
            return within(function, dim)
    return any_movement(function)


def any_movement(function: Callable[[Tensor], Any]) -> Move:
    """A function of which no more is known than that it moves entries around."""

    def move(tensor: Tensor, shape: Shape) -> Any:
        return _each(narrow, function(tensor.expand(shape)))

    return move


def within(function: Callable[[Tensor], Any], dim: int | None = None) -> Move:
    """A function that leaves dimensions as they are or swaps them; if it picks or orders entries,
    then those of one dimension (``dim``, which must be given unless constant entries stay so)."""

    def move(tensor: Tensor, shape: Shape) -> Any:
        if dim is None or tensor.shape[dim] == shape[dim]:
            return function(tensor)
        sizes = [-1] * len(shape)
        sizes[dim] = shape[dim]
        return _each(narrow, function(tensor.expand(sizes)))

    return move


def reshaped(new: Sequence[int]) -> Move:
    """A reshape: dimensions that merge or split are written out, but not if all are constant."""

    def move(tensor: Tensor, shape: Shape) -> Tensor:
        if 0 in shape:
            return tensor.expand(shape).reshape(tuple(new))
        old, sizes = list(shape), list(new)
        for before, after in _groups(old, sizes):
            if all(tensor.shape[dim] == 1 for dim in before):
                for dim in before:
                    old[dim] = 1
                for dim in after:
                    sizes[dim] = 1
        return tensor.expand(old).reshape(sizes)

    return move


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[Dims, Dims]]:
    """Neighbouring dimensions of the one shape and those of the other that they become: of the same
    product, and as few as possible."""
    before: list[int] = []
    after: list[int] = []
    i, j, first, second = 0, 0, 1, 1
    groups = []
    while i < len(old) or j < len(new):
        if j == len(new) or (i < len(old) and first <= second):
            before.append(i)
            first, i = first * old[i], i + 1
        else:
            after.append(j)
            second, j = second * new[j], j + 1
        if first == second and before and after:
            groups.append((tuple(before), tuple(after)))
            before, after, first, second = [], [], 1, 1
    return iter([*groups, (tuple(before), tuple(after))])  # sizes of 1 that are left


def expanded(new: Sequence[int]) -> Move:
    """An expansion: what it adds is constant."""
    return lambda tensor, _: tensor[(None,) * (len(new) - tensor.dim())]


def indexed(index: Any) -> Move:
    """``tensor[index]``."""
    items = index if isinstance(index, tuple) else (index,)
    if not all(map(_is_basic, items)):
        return any_movement(lambda tensor: tensor[index])

    def move(tensor: Tensor, shape: Shape) -> Tensor:
        taken = len(shape) - sum(item is not None and item is not ... for item in items)
        own: list[Any] = []
        dim = 0
        for item in items:
            if item is ...:
                dim += taken
            elif item is not None:
                if tensor.shape[dim] != shape[dim]:  # constant: a 1, which stands for any size
                    item = slice(None) if isinstance(item, slice) else 0
                dim += 1
            own.append(item)
        return tensor[tuple(own)]

    return move


def _is_basic(item: Any) -> bool:
    if isinstance(item, (int, slice, EllipsisType)):
        return not isinstance(item, bool)
    return item is None


def _each(function: Callable[[Tensor], Tensor], made: Any) -> Any:
    return function(made) if isinstance(made, Tensor) else type(made)(map(function, made))


def even(tensor: Tensor) -> Tensor:
    """The same with one entry, if its entries differ by rounding alone."""
    if tensor.is_meta or tensor.numel() <= 1:
        return tensor
    low, high = torch.aminmax(tensor)
    if bool(high - low > 4 * torch.finfo(tensor.dtype).eps * high):
        return tensor
    return high.reshape([1] * tensor.dim())
