"""One scoring pass, as multiples of a plain forward and against the official algorithm.

For masks of several densities, `pxfast.score`, `pxfast.reference.official.score` and a plain
forward of the same images, all in one batch, are timed in turn in one process. The masks come from
`pxfast.prune` in a few rounds. Peak memory is that of one score in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import pxfast
from bench._harness import Work, paired, peak_memory, ratio, spread
from bench._result import Result
from pxfast.reference import official

MODELS = {"resnet20": pxfast.models.resnet20, "vgg16": pxfast.models.vgg16}
MASK_ROUNDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--model", choices=MODELS, default="resnet20", help="what to score")
    parser.add_argument("--size", type=int, default=32, help="height and width of the digits")
    parser.add_argument("--per-class", type=int, default=10, help="images of each of 10 classes")
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed")
    parser.add_argument(
        "--densities", type=float, nargs="+", default=[1.0, 0.5, 0.1, 0.02], help="of the masks"
    )


def measure(arguments: argparse.Namespace) -> Result:
    """Time and weigh scoring passes at every density."""
    model, images = setting(arguments.model, arguments.size, arguments.per_class)
    rows = []
    for criterion in ("px", "px-joint"):
        for density in arguments.densities:
            rows.append(_row(model, images, criterion, density, arguments))
    return Result(
        subject=arguments.model,
        settings={
            "images": len(images),
            "image": list(images.shape[1:]),
            "data": "digits",
            "batch": len(images),
            "repeats": arguments.repeats,
            "mask_rounds": MASK_ROUNDS,
        },
        rows=rows,
        notes=[
            "Times are medians of paired runs (quartiles in brackets); × forward is the time in "
            "plain forwards of the same images in one batch.",
            "Peak memory is what one score takes on top of model and images, in its own process.",
        ],
    )


def setting(model: str, size: int, per_class: int) -> tuple[nn.Module, Tensor]:
    """Return a model as it is initialised, and a balanced set of handwritten digits."""
    torch.manual_seed(0)
    subset = pxfast.balanced_subset(pxfast.data.digits(size=size), per_class=per_class)
    images = torch.stack([image for image, _ in subset])
    return MODELS[model](num_classes=10, in_channels=images.shape[1]).eval(), images


def forward_of(model: nn.Module, images: Tensor) -> Work:
    """Return the plain forward of all images in one batch."""

    @torch.no_grad()
    def forward() -> Tensor:
        return model(images)

    return forward


def score_memory(
    candidate: str, model: str, size: int, per_class: int, density: float, small: bool
) -> Work:
    """Prepare one score for `peak_memory`: of pxfast's criterion, or `"official"`."""
    network, images = setting(model, size, 1 if small else per_class)
    masks = masks_of(network, images[:10], density)
    if candidate == "official":
        return lambda: official.score(network, images, masks=masks)
    return lambda: pxfast.score(network, images, criterion=candidate, masks=masks)


def masks_of(model: nn.Module, images: Tensor, density: float) -> Mapping[str, Tensor] | None:
    """Return masks of a density as pruning in a few rounds leaves them; None for all weights."""
    if density == 1:
        return None
    return pxfast.prune(model, images, density=density, rounds=MASK_ROUNDS)


def _row(
    model: nn.Module,
    images: Tensor,
    criterion: str,
    density: float,
    arguments: argparse.Namespace,
) -> dict[str, object]:
    masks = masks_of(model, images, density)
    provenance = pxfast.score(model, images, criterion=criterion, masks=masks).provenance
    seconds = paired(
        {
            "forward": forward_of(model, images),
            "pxfast": lambda: pxfast.score(model, images, criterion=criterion, masks=masks),
            "official": lambda: official.score(model, images, masks=masks),
        },
        repeats=arguments.repeats,
        title=f"{criterion} at density {density:g}",
    )
    memory = {
        name: peak_memory(
            score_memory,
            candidate=name,
            model=arguments.model,
            size=arguments.size,
            per_class=arguments.per_class,
            density=density,
        )
        for name in (criterion, "official")
    }
    return {
        "criterion": criterion,
        "density": density,
        "data pass": provenance["data_pass"].partition(":")[0],
        "forward ms": spread([1e3 * value for value in seconds["forward"]]),
        "pxfast × forward": ratio(seconds["pxfast"], seconds["forward"]),
        "official × forward": ratio(seconds["official"], seconds["forward"]),
        "official ÷ pxfast": ratio(seconds["official"], seconds["pxfast"]),
        "pxfast MiB": memory[criterion],
        "official MiB": memory["official"],
    }
