"""One scoring pass, in plain forwards and against the official algorithm.

For masks of several densities, `pxfast.score`, `pxfast.reference.official.score` and a plain
forward of the same images, all in one batch, are timed in turn in one process. The masks come from
`pxfast.prune` in a few rounds. Peak memory is that of one score in a process of its own.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import pxfast
from bench import _setting
from bench._harness import Work, paired, peak_memory, ratio, spread
from bench._result import Result
from pxfast.reference import official

MASK_ROUNDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    _setting.add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=11, help="how often each is timed")
    parser.add_argument(
        "--densities", type=float, nargs="+", default=[1.0, 0.5, 0.1, 0.02], help="of the masks"
    )


def measure(arguments: argparse.Namespace) -> Result:
    """Time and weigh scoring passes at every density."""
    model, images = _setting.setting(arguments.model, arguments.size, arguments.per_class)
    rows = []
    for density in arguments.densities:
        masks = masks_of(model, images, density)
        official_memory = _memory("official", density, arguments)
        for criterion in ("px", "px-joint"):
            times = _times(model, images, criterion, masks, arguments.repeats)
            memory = {
                "pxfast MiB": _memory(criterion, density, arguments),
                "official MiB": official_memory,
            }
            rows.append({"criterion": criterion, "density": density, **times, **memory})
    rows.sort(key=lambda row: row["criterion"])
    return Result(
        subject=arguments.model,
        settings={
            **_setting.settings(images),
            "repeats": arguments.repeats,
            "rounds that made the masks": MASK_ROUNDS,
        },
        rows=rows,
        notes=[
            "× forward is the time in plain forwards of the same images, in one batch as well. "
            "Times are medians of runs in turn, in brackets the quartiles.",
            "MiB is what one score takes at its peak on top of model and images.",
        ],
    )


def masks_of(model: nn.Module, images: Tensor, density: float) -> Mapping[str, Tensor] | None:
    """Return masks of a density as pruning in a few rounds leaves them; None for all weights."""
    if density == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that residual branches became empty
        return pxfast.prune(model, images, density=density, rounds=MASK_ROUNDS)


def prepare_score(candidate: str, density: float, small: bool, **setting: object) -> Work:
    """Prepare one score for `peak_memory`: of a criterion of pxfast, or `"official"`."""
    model, images = _setting.setting(**setting)
    masks = masks_of(model, images[:10], density)
    images = images[:2] if small else images
    if candidate == "official":
        return lambda: official.score(model, images, masks=masks)
    return lambda: pxfast.score(model, images, criterion=candidate, masks=masks)


def _times(
    model: nn.Module,
    images: Tensor,
    criterion: str,
    masks: Mapping[str, Tensor] | None,
    repeats: int,
) -> dict[str, object]:
    def forward() -> None:
        with torch.no_grad():
            model(images)

    def score() -> pxfast.Scores:
        return pxfast.score(model, images, criterion=criterion, masks=masks)

    data_pass = str(score().provenance["data_pass"])
    seconds = paired(
        {
            "forward": forward,
            "pxfast": score,
            "official": lambda: official.score(model, images, masks=masks),
        },
        repeats=repeats,
        title=criterion,
    )
    return {
        "data pass": data_pass.partition(":")[0],
        "forward ms": spread([1e3 * value for value in seconds["forward"]]),
        "pxfast × forward": ratio(seconds["pxfast"], seconds["forward"]),
        "official × forward": ratio(seconds["official"], seconds["forward"]),
        "official ÷ pxfast": ratio(seconds["official"], seconds["pxfast"]),
    }


def _memory(candidate: str, density: float, arguments: argparse.Namespace) -> float:
    return peak_memory(
        prepare_score,
        candidate=candidate,
        density=density,
        model=arguments.model,
        size=arguments.size,
        per_class=arguments.per_class,
    )
