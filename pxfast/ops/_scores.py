"""What the ops that read the scores of many tensors share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from pxfast.ops._checks import FLOATS, check_device, check_dtype, name_of

Alive = Sequence[Tensor | None]


def check_scores(op: str, scores: Sequence[Tensor], alive: Alive) -> None:
    """Raise ValueError unless the arguments fit."""
    if not scores:
        raise ValueError(f"{op}: scores must hold at least one tensor")
    if len(alive) != len(scores):
        raise ValueError(
            f"{op}: alive must hold one entry for each of the {len(scores)} scores, "
            f"got {len(alive)}"
        )
    dtype = scores[0].dtype
    check_dtype(op, "scores", scores[0], FLOATS)
    for i, (score, mask) in enumerate(zip(scores, alive, strict=True)):
        if score.dtype != dtype:
            raise ValueError(
                f"{op}: scores[{i}] must be {name_of(dtype)} as scores[0] is, "
                f"got {name_of(score.dtype)}"
            )
        check_device(op, f"scores[{i}]", score, scores[0], "scores[0]")
        if mask is None:
            continue
        if mask.shape != score.shape:
            raise ValueError(
                f"{op}: alive[{i}] must have the shape {list(score.shape)} of scores[{i}], "
                f"got {list(mask.shape)}"
            )
        check_dtype(op, f"alive[{i}]", mask, (torch.bool,))
        check_device(op, f"alive[{i}]", mask, scores[0], "scores[0]")


def common_dtype(op: str, scores: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which all scores are exact.

    Raises:
        TypeError: if one is not floating.
    """
    for score in scores:
        if score.dtype not in FLOATS:
            raise TypeError(f"{op}: scores must be floating, got {score.dtype}")
    return reduce(torch.promote_types, (score.dtype for score in scores))


def alike(
    scores: Sequence[Tensor], alive: Alive | None, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Scores and masks as the ops take them: of one dtype, on one device, contiguous.

    What is so already is not copied.
    """
    device = scores[0].device
    masks = alive if alive is not None else [None] * len(scores)
    return (
        [score.detach().to(device, dtype).contiguous() for score in scores],
        [None if mask is None else mask.to(device).contiguous() for mask in masks],
    )
