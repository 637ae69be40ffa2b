"""What the ops that read the scores of many tensors share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Alive = Sequence[Tensor | None]


def check_scores(op: str, scores: Sequence[Tensor], alive: Alive) -> None:
    """Raise ValueError unless the arguments fit; csrc/binding says the same, word for word."""
    if not scores:
        raise ValueError(f"{op}: scores must hold at least one tensor")
    if len(alive) != len(scores):
        raise ValueError(
            f"{op}: alive must hold one entry for each of the {len(scores)} scores, "
            f"got {len(alive)}"
        )
    dtype, device = scores[0].dtype, scores[0].device
    if dtype not in DTYPES:
        raise ValueError(
            f"{op}: scores must be float32, float64, bfloat16 or float16, got {name_of(dtype)}"
        )
    for i, (score, mask) in enumerate(zip(scores, alive, strict=True)):
        if score.dtype != dtype:
            raise ValueError(
                f"{op}: scores[{i}] must be {name_of(dtype)} as scores[0] is, "
                f"got {name_of(score.dtype)}"
            )
        _check_device(op, f"scores[{i}]", score, device)
        if mask is None:
            continue
        if mask.shape != score.shape:
            raise ValueError(
                f"{op}: alive[{i}] must have the shape {list(score.shape)} of scores[{i}], "
                f"got {list(mask.shape)}"
            )
        if mask.dtype != torch.bool:
            raise ValueError(f"{op}: alive[{i}] must be bool, got {name_of(mask.dtype)}")
        _check_device(op, f"alive[{i}]", mask, device)


def _check_device(op: str, name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{op}: {name} must be on scores[0]'s device {device}, got {tensor.device}"
        )


def name_of(dtype: torch.dtype) -> str:
    """The dtype's name without the module."""
    return str(dtype).removeprefix("torch.")


def common_dtype(op: str, scores: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which all scores are exact.

    Raises:
        TypeError: if one is not floating.
    """
    for score in scores:
        if score.dtype not in DTYPES:
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
