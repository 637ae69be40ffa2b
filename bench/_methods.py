"""The pruning methods of the quality benchmark, each giving masks at several densities.

A method in rounds goes through one schedule, the paper's exponential one, and hands out its masks
where that passes the densities asked for; a method in one shot scores once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

import pxfast
from pxfast.criteria import Random
from pxfast.reference import official

Data = tuple[Tensor, Tensor]  # images and labels, one batch
MaskDict = Mapping[str, Tensor]
Segments = list[list[float]]


def segments(densities: Sequence[float], rounds: int) -> Segments:
    """Divide an exponential schedule at densities that it is to pass exactly.

    Args:
        densities: from the highest to the lowest, where the schedule ends.
        rounds: of the whole schedule; each density gets the nearest of them, one of its own.

    Returns:
        For each density the densities after its rounds, the last of which is the density itself.
    """
    parts, start, first = [], 1.0, 0
    for density in densities:
        last = max(first + 1, round(rounds * math.log(density) / math.log(densities[-1])))
        count = last - first
        steps = [start * (density / start) ** (r / count) for r in range(1, count)]
        parts.append([*steps, density])
        start, first = density, last
    return parts


def masks_at(
    method: str,
    model: nn.Module,
    data: Data,
    densities: Sequence[float],
    rounds: int,
    seed: int,
) -> list[MaskDict | str]:
    """Return the masks that a method of `METHODS` gives at each density, or why there are none.

    Args:
        method: its name.
        model: what is pruned, which stays as it is.
        data: what it is pruned with.
        densities: from the highest to the lowest.
        rounds: of the methods that have rounds, to the lowest density.
        seed: of random scores.
    """
    found: list[MaskDict | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that residual branches became empty
        try:
            for masks in METHODS[method](model, data, segments(densities, rounds), seed):
                found.append(masks)
        except pxfast.errors.PxfastError as error:
            found += [str(error)] * (len(densities) - len(found))
    return found


def _in_rounds(
    criterion: str, batchnorm: str = "running"
) -> Callable[[nn.Module, Data, Segments, int], Iterator[MaskDict]]:
    def run(model: nn.Module, data: Data, parts: Segments, seed: int) -> Iterator[MaskDict]:
        masks = None
        for part in parts:
            masks = pxfast.prune(
                model, data, density=part[-1], schedule=part, masks=masks, criterion=criterion,
                batchnorm=batchnorm, progress=False,
            )  # fmt: skip
            yield masks

    return run


def _at_once(
    criterion: str | Callable[[int], object], scope: str = "global"
) -> Callable[[nn.Module, Data, Segments, int], Iterator[MaskDict]]:
    def run(model: nn.Module, data: Data, parts: Segments, seed: int) -> Iterator[MaskDict]:
        chosen = criterion if isinstance(criterion, str) else criterion(seed)
        scores = pxfast.score(model, data, criterion=chosen, progress=False)
        for part in parts:
            yield scores.masks(density=part[-1], scope=scope)

    return run


def _official(model: nn.Module, data: Data, parts: Segments, seed: int) -> Iterator[MaskDict]:
    """The loop of `official.prune` through the same densities."""
    masks: dict[str, Tensor] = {}
    for part in parts:
        for density in part:
            scores = official.score(model, data, masks)
            flat = torch.cat([score.flatten() for score in scores.values()])
            removed = int((1 - density) * flat.numel())
            threshold = flat.kthvalue(removed).values if removed else -math.inf
            masks = {name: score > threshold for name, score in scores.items()}
        yield masks


METHODS = {
    "px": _in_rounds("px"),
    "px-joint": _in_rounds("px-joint"),
    "px-joint, data statistics": _in_rounds("px-joint", "data"),
    "synflow": _in_rounds("synflow"),
    "snip": _at_once("snip"),
    "magnitude": _at_once("magnitude"),
    "magnitude, layerwise": _at_once("magnitude", scope="layer"),
    "random": _at_once(lambda seed: Random(seed=seed)),
    "official": _official,
}
NEEDS_BATCHNORM = ("px-joint, data statistics",)  # elsewhere the same as px-joint
