"""The masks of a threshold, for all tensors in one call.

One read of the scores and one write of the masks. Only where a part of the scores that equal the
threshold is kept, one more read counts these, so that the first ones in order are kept whatever the
number of threads. csrc/write_masks.h is the kernels' contract.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pxfast.ops._declare import declare
from pxfast.ops._scores import Alive, alike, check_scores
from pxfast.ops.select_threshold import Threshold
from pxfast.reference import write_masks as reference


def write_masks(
    scores: Sequence[Tensor], threshold: Threshold, alive: Alive | None = None
) -> list[Tensor]:
    """Writes the masks of a threshold: ties keep the earlier position.

    Args:
        scores: the tensors that `select_threshold` read.
        threshold: what it returned.
        alive: the masks that it was given.

    Returns:
        Contiguous bool tensors of the scores' shapes, on their devices, with exactly `keep` ones
        altogether.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> from pxfast.ops import select_threshold
        >>> scores = [torch.tensor([0.1, 0.7]), torch.tensor([0.7, 0.9])]
        >>> write_masks(scores, select_threshold(scores, keep=2))
        [tensor([False,  True]), tensor([False,  True])]
    """
    if not scores:
        return []
    same, masks = alike(scores, alive, threshold.dtype)
    written = torch.ops.pxfast.write_masks(
        same, masks, threshold.key, threshold.ties, threshold.equal
    )
    return [mask.to(score.device) for mask, score in zip(written, scores, strict=True)]


def _fake(
    scores: Sequence[Tensor], alive: Sequence[Tensor | None], key: int, ties: int, equal: int
) -> list[Tensor]:
    check_scores("write_masks", scores, alive)
    if not 0 <= ties <= equal:
        raise ValueError(f"write_masks: ties must be in 0..{equal} (equal), got {ties}")
    return [score.new_empty(score.shape, dtype=torch.bool) for score in scores]


declare(
    "write_masks(Tensor[] scores, Tensor?[] alive, int key, int ties, int equal) -> Tensor[]",
    fake=_fake,
    reference=reference.write_masks,
)
