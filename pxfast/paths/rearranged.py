"""Movements of entries of tensors that are constant along some dimensions.

torch copies an expanded tensor entry by entry where a reshape or a roll cannot be a view: in a
windowed transformer, whose windows are cut out of rolled images, at every layer. Here dimensions in
which the tensor is expanded (stride 0) stay so, and only what differs is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pxfast.paths.pathsum import narrow

Dims = tuple[int, ...]


def reshaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor.reshape(shape)``, expanded wherever only constant dimensions merge or split."""
    old, new = list(tensor.shape), list(shape)
    strides = tensor.stride()
    if tensor.numel() == 0 or all(map(_varies, old, strides)):
        return tensor.reshape(shape)
    for before, after in _groups(old, new):
        if not any(_varies(old[dim], strides[dim]) for dim in before):
            for dim in before:
                tensor = tensor.narrow(dim, 0, 1)
            for dim in after:
                new[dim] = 1
    return tensor.reshape(new).expand(tuple(shape))


def _varies(size: int, stride: int) -> bool:
    return size > 1 and stride != 0


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[Dims, Dims]]:
    """Neighbouring dimensions of the one shape and those of the other that they become: of the same
    product, and as few as possible."""
    before: list[int] = []
    after: list[int] = []
    i, j, first, second = 0, 0, 1, 1
    while i < len(old) or j < len(new):
        if j == len(new) or (i < len(old) and first <= second):
            first, i = first * old[i], i + 1
            before.append(i - 1)
        else:
            second, j = second * new[j], j + 1
            after.append(j - 1)
        if first == second and before and after:
            yield tuple(before), tuple(after)
            before, after, first, second = [], [], 1, 1
    yield tuple(before), tuple(after)  # dimensions of size 1 that are left


def turned(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """A function that changes the order of entries within dimensions (roll, flip): it does nothing
    to a dimension that is constant."""
    return function(narrow(tensor)).expand(tensor.shape)


def even(tensor: Tensor) -> Tensor:
    """The same with one entry, if its entries differ by rounding alone."""
    if tensor.is_meta or tensor.numel() <= 1:
        return tensor
    low, high = torch.aminmax(tensor)
    if bool(high - low > 4 * torch.finfo(tensor.dtype).eps * high):
        return tensor
    return high.reshape([1] * tensor.dim())
