"""Batches on the model's device: on a GPU the next one is copied while one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pxfast.batches import Batch, to_device

Item = TypeVar("Item")
Begun = TypeVar("Begun")


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches whose tensors are on ``device``.

    On a GPU one batch more than is worked on is held there: it is pinned, if the loader has not
    done so, and copied on a stream of its own. Elsewhere nothing is read ahead.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    side = torch.cuda.Stream(device)

    def start(batch: Batch) -> tuple[Batch, torch.Event]:
        with torch.cuda.stream(side):
            return to_device(pinned(batch), device), side.record_event()

    for batch, copied in one_ahead(batches, start):
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for leaf in tree_leaves((batch.args, batch.kwargs)):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                leaf.record_stream(current)  # its memory is not given away before the work is done
        yield batch


def pinned(batch: Batch) -> Batch:
    """The batch in memory that a GPU can copy from by itself."""

    def pin(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if tensor.device.type == "cpu" else tensor

    return Batch(*tree_map_only(Tensor, pin, (batch.args, batch.kwargs)))


def one_ahead(items: Iterable[Item], start: Callable[[Item], Begun]) -> Iterator[Begun]:
    """What ``start`` makes of every item, begun before the item before it is handed out."""
    waiting: list[Begun] = []
    for item in items:
        waiting.append(start(item))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
