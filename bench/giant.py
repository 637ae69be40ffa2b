"""A vision transformer of a billion weights on a CPU: time, and peak memory of the whole process.

ViT-g/14 with random weights is scored by px, without masks, where that skips the pass over the
data, and with the pass all the same, and pruned in a few rounds; beside it stands a plain forward
of the same random images. Each runs once, in a process of its own, whose peak resident memory
counts everything: libraries, the weights, their scores and masks, activations.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from typing import Any

import torch
from torch import Tensor

import pxfast
from bench import score
from bench._harness import apart
from bench._libraries import load
from bench._result import Result
from bench.score import FORCED

STEPS = ("forward", "px", FORCED, "prune")
GB = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--model", default="vit_giant_patch14_224", help="of timm")
    parser.add_argument("--images", type=int, default=8, help="random images in the batch")
    parser.add_argument("--density", type=float, default=0.1, help="fraction of weights to keep")
    parser.add_argument("--rounds", type=int, default=3, help="of pruning")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="what to do")


def measure(arguments: argparse.Namespace) -> Result:
    """Do every step once, each in a process of its own."""
    rows: list[dict[str, object]] = []
    for step in arguments.steps:
        chosen = (arguments.model, arguments.images, arguments.density, arguments.rounds)
        rows.append({"step": step, **apart(row, step, *chosen, torch.get_num_threads())})
        print(*rows[-1].values(), flush=True)
    return Result(
        subject=arguments.model,
        settings={
            "images": arguments.images,
            "density": arguments.density,
            "rounds": arguments.rounds,
        },
        rows=rows,
        notes=[
            "Peak GB is the largest resident memory of the whole process, with libraries and "
            "weights; × weights is that in copies of the weights."
        ],
    )


def setting(model: str, images: int) -> tuple[Any, Tensor]:
    """Return a network of timm and random images for it.

    Its own initialisation would take longer than all that is measured: weights are drawn from a
    plain normal distribution.
    """
    torch.manual_seed(0)
    with torch.device("meta"):
        network = load("timm").create_model(model)
    network = network.to_empty(device="cpu").requires_grad_(False).eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(0.5)
    size = network.default_cfg["input_size"][-1]
    return network, torch.rand(images, 3, size, size)


def row(
    step: str, model: str, images: int, density: float, rounds: int, threads: int
) -> dict[str, object]:
    """Build the model, do one step, and return what it took."""
    torch.set_num_threads(threads)
    network, batch = setting(model, images)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # branches that became empty
        if step == "prune":
            masks = pxfast.prune(network, batch, density=density, rounds=rounds)
            kept = masks.density
        else:
            score.run(step, network, batch, None)
            kept = 1.0
    seconds = time.perf_counter() - start
    weights = sum(parameter.nbytes for parameter in network.parameters())
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "weights M": round(sum(map(torch.numel, network.parameters())) / 1e6, 1),
        "density": kept,
        "seconds": seconds,
        "peak GB": peak / GB,
        "peak × weights": peak / weights,
    }
