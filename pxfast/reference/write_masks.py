"""The masks of a threshold."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pxfast.reference.select_threshold import order_keys


def write_masks(
    scores: Sequence[Tensor], alive: Sequence[Tensor | None], key: int, ties: int, equal: int
) -> list[Tensor]:
    """Keeps the alive scores above a key, and the first `ties` of those that equal it.

    Args:
        scores: tensors of one dtype and device.
        alive: for each a bool tensor of its shape, or None: all are.
        key: as `order_keys` forms them.
        ties: how many of the alive scores with this key are kept, in order.
        equal: how many there are; the formula does not need it.

    Returns:
        Contiguous bool tensors of the scores' shapes.
    """
    del equal
    masks = []
    for score, mask in zip(scores, alive, strict=True):
        keys = order_keys(score)
        kept, tied = keys > key, keys == key
        if mask is not None:
            kept, tied = kept & mask, tied & mask
        first = tied.view(-1).nonzero()[:ties, 0]
        kept.view(-1)[first] = True
        ties -= len(first)
        masks.append(kept)
    return masks
