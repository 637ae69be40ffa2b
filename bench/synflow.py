"""The loop of the Synaptic-Flow family with PX from pxfast, and with the official PX.

VGG-11 without BatchNorm, written as in that family, is pruned to 2% in rounds: score, then mask.
Both pruners do each round in turn, each on its own copy of the model, on the same images. Before
the first round and after the last, the official scores of pxfast's `PX(…, official=True)` are
compared with the official loop's under the same masks. Peak memory is that of two rounds, in a
process of its own.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench import _setting
from bench._harness import Work, peak_memory, ratio, spread
from bench._result import Result
from bench._synflow import VGG, OfficialPX, masked_parameters
from pxfast.integrations.synflow import PX

MEMORY_ROUNDS = 2
PRUNERS: dict[str, Callable[..., Any]] = {"pxfast": PX, "official": OfficialPX}
Loader = list[tuple[Tensor, None]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--width", type=int, default=64, help="channels of the first layer")
    parser.add_argument("--per-class", type=int, default=10, help="digits of each of 10 classes")
    parser.add_argument("--density", type=float, default=0.02, help="fraction of weights to keep")
    parser.add_argument("--rounds", type=int, default=20, help="scores and selections")


def measure(arguments: argparse.Namespace) -> Result:
    """Prune with both in turn and compare them round by round."""
    model, loader = setting(arguments.width, arguments.per_class)
    difference = [difference_of_scores(model, loader)]
    networks = {name: copy.deepcopy(model) for name in PRUNERS}
    pruners = {name: make(masked_parameters(networks[name])) for name, make in PRUNERS.items()}
    for name, pruner in pruners.items():  # both once before the clock counts
        pruner.score(networks[name], None, loader, "cpu")
    seconds: dict[str, list[float]] = {name: [] for name in PRUNERS}
    for r in tqdm(range(1, arguments.rounds + 1), desc="pruning twice"):
        for name in list(PRUNERS)[:: 1 if r % 2 else -1]:
            start = time.perf_counter()
            pruners[name].score(networks[name], None, loader, "cpu")
            pruners[name].mask(arguments.density ** (r / arguments.rounds), "global")
            seconds[name].append(time.perf_counter() - start)
    difference.append(difference_of_scores(networks["official"], loader))
    memory = {
        name: peak_memory(
            prepare_rounds,
            pruner=name, width=arguments.width, per_class=arguments.per_class,
            density=arguments.density ** (MEMORY_ROUNDS / arguments.rounds),
        )
        for name in PRUNERS
    }  # fmt: skip
    return Result(
        subject="vgg11",
        settings={
            "model": "VGG-11 without BatchNorm, 3 x 32 x 32",
            "width": arguments.width,
            "images": len(loader[0][0]),
            "density": arguments.density,
            "rounds": arguments.rounds,
        },
        rows=[_row(name, seconds, memory) for name in PRUNERS],
        notes=[
            "Seconds are the sum over the rounds; × pxfast, the median of the rounds' ratios, in "
            "brackets the quartiles.",
            f"MiB is what the first {MEMORY_ROUNDS} rounds take at their peak on top of model and "
            "images.",
            "`PX(…, official=True)` scores like the official loop: largest difference "
            f"{difference[0]:.1e} of the largest score of a layer before the first round, "
            f"{difference[1]:.1e} under the masks after the last.",
        ],
    )


def setting(width: int, per_class: int) -> tuple[nn.Module, Loader]:
    """Return the network and one batch of digits in three equal channels."""
    _, digits = _setting.setting("resnet20", 32, per_class)
    torch.manual_seed(0)
    return VGG(11, batchnorm=False, width=width).eval(), [(digits.expand(-1, 3, -1, -1), None)]


def difference_of_scores(model: nn.Module, loader: Loader) -> float:
    """Return how far the official scores of pxfast are from the official loop's, relative to the
    largest of each layer."""
    ours = PX(masked_parameters(model), official=True)
    theirs = OfficialPX(masked_parameters(model))
    for pruner in (ours, theirs):
        pruner.score(model, None, loader, "cpu")
    return max(
        float((ours.scores[key] - score).abs().max() / score.abs().max())
        for key, score in theirs.scores.items()
    )


def prepare_rounds(pruner: str, width: int, per_class: int, density: float, small: bool) -> Work:
    """Prepare a few rounds for `peak_memory`, with one of `PRUNERS`."""
    model, loader = setting(width, per_class)
    if small:
        loader = [(images[:2], labels) for images, labels in loader]

    def rounds() -> None:
        chosen = PRUNERS[pruner](masked_parameters(model))
        for r in range(1, MEMORY_ROUNDS + 1):
            chosen.score(model, None, loader, "cpu")
            chosen.mask(density ** (r / MEMORY_ROUNDS), "global")
        for mask, _ in chosen.masked_parameters:
            mask.fill_(1)

    return rounds


def _row(name: str, seconds: dict[str, list[float]], memory: dict[str, float]) -> dict[str, object]:
    return {
        "PX of": name,
        "s": sum(seconds[name]),
        "ms a round": spread([1e3 * value for value in seconds[name]]),
        "× pxfast": ratio(seconds[name], seconds["pxfast"]),
        "MiB": memory[name],
    }
