"""The whole run to 2% density, against the official algorithm's.

Both algorithms prune the same model with the same images in one process, in turn, round by round,
each with its own masks; a round is a score and the selection. Rounds in which pxfast reads the
data and rounds whose data pass it skips are told apart, and its time is broken down into steps. On
large networks the official algorithm takes part in every tenth round only. Peak memory is that of
a few rounds from the start, in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor, nn
from tqdm import tqdm

import pxfast
from bench import _setting
from bench._harness import Work, peak_memory, ratio, spread
from bench._result import Result
from pxfast.paths.passes import Passes
from pxfast.reference import official
from pxfast.scoring import Scorer

MEMORY_ROUNDS = 3
STEPS: dict[str, list[tuple[type, str]]] = {  # of a round of pxfast: the methods that do each
    "data pass": [(Passes, "activation"), (Passes, "joint")],
    "kernel pass": [(Passes, "kernel")],
    "selection": [(pxfast.Scores, "masks")],
}
MaskDict = dict[str, Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    _setting.add_arguments(parser, random_size=160)
    parser.add_argument("--criterion", choices=("px", "px-joint"), default="px", help="of pxfast")
    parser.add_argument("--density", type=float, default=0.02, help="fraction of weights to keep")
    parser.add_argument("--rounds", type=int, default=100, help="scores and selections")
    parser.add_argument(
        "--official-every",
        type=int,
        metavar="N",
        help="let the official algorithm prune in rounds 1, 1 + N, 1 + 2N … only (by default 1 on "
        "digits, 10 on random images)",
    )


def measure(arguments: argparse.Namespace) -> Result:
    """Prune with both algorithms in turn and compare them round by round."""
    chosen = _setting.of(arguments)
    model, images = _setting.setting(**chosen)
    every = arguments.official_every or (1 if chosen["images"] is None else 10)
    scorer = Scorer(model, images, arguments.criterion, reuse=True)  # as pxfast.prune does
    pxfast_round(scorer, {}, 0.5)  # both once before the clock counts
    official_round(model, images, {}, 0.5)
    seconds: dict[str, list[float]] = {name: [] for name in ("pxfast", "official", *STEPS)}
    reads_data = []
    ours: MaskDict = {}
    theirs: MaskDict = {}
    for r in tqdm(range(1, arguments.rounds + 1), desc="pruning twice"):
        density = arguments.density ** (r / arguments.rounds)
        with _timed(seconds["pxfast"]), steps_timed() as spent:
            ours, provenance = pxfast_round(scorer, ours, density)
        for step in STEPS:
            seconds[step].append(spent[step])
        if (r - 1) % every == 0:
            with _timed(seconds["official"]):
                theirs = official_round(model, images, theirs, density)
        else:
            seconds["official"].append(seconds["official"][-1])
        reads_data.append(provenance["data_pass"] == "run")
    kinds: list[tuple[str, list[bool]]] = [
        ("rounds that read the data", reads_data),
        ("rounds whose data pass is skipped", [not read for read in reads_data]),
        ("whole run", [True] * arguments.rounds),
    ]
    memory = {name: _memory(name, arguments) for name in ("pxfast", "official")}
    return Result(
        subject=_setting.subject(arguments.model, images),
        settings={
            **_setting.settings(images),
            "criterion": arguments.criterion,
            "density": arguments.density,
        },
        rows=[_row(kind, chosen, seconds, memory) for kind, chosen in kinds if any(chosen)],
        notes=_notes(every),
    )


def pxfast_round(
    scorer: Scorer, masks: MaskDict, density: float
) -> tuple[MaskDict, dict[str, object]]:
    """Do one round as `pxfast.prune` does it; return the new masks and the scores' provenance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scores = scorer(masks or None)
    return dict(scores.masks(density=density, masks=masks)), scores.provenance


def official_round(model: nn.Module, images: Tensor, masks: MaskDict, density: float) -> MaskDict:
    """Do one round as `official.prune` does it; return the new masks."""
    scores = official.score(model, images, masks=masks)
    flat = torch.cat([score.flatten() for score in scores.values()])
    removed = int((1 - density) * flat.numel())
    if removed < 1:
        return masks
    threshold, _ = torch.kthvalue(flat, removed)
    return {name: score > threshold for name, score in scores.items()}


def prepare_prune(
    candidate: str, criterion: str, density: float, small: bool, **setting: object
) -> Work:
    """Prepare a few rounds for `peak_memory`, of `"pxfast"` or `"official"`."""
    model, images = _setting.setting(**setting)
    images = images[:2] if small else images
    run: dict[str, Callable[..., object]] = {
        "pxfast": lambda **settings: pxfast.prune(model, images, criterion=criterion, **settings),
        "official": lambda **settings: official.prune(model, images, **settings),
    }
    return lambda: run[candidate](density=density, rounds=MEMORY_ROUNDS)


@contextmanager
def steps_timed() -> Iterator[dict[str, float]]:
    """Give the seconds that the calls inside spend in each of `STEPS`."""
    spent = dict.fromkeys(STEPS, 0.0)

    def timed(method: Callable[..., object], step: str) -> Callable[..., object]:
        @functools.wraps(method)
        def call(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[step] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for step, methods in STEPS.items():
            for owner, name in methods:
                wrapped = timed(getattr(owner, name), step)
                stack.enter_context(mock.patch.object(owner, name, wrapped))
        yield spent


def _notes(every: int) -> list[str]:
    """Return what a reader must know, with how often the official algorithm took part."""
    notes = [
        "Seconds are sums over the rounds; per round, medians of the rounds' ratios, in "
        "brackets the quartiles.",
        "The kernel pass is that of px; px-joint has only its data pass. Other is everything else "
        "in a round: checks, the proof that the data cancel, and the assembling of the scores.",
        f"MiB is what the first {MEMORY_ROUNDS} rounds take at their peak on top of model and "
        "images.",
    ]
    if every > 1:
        notes.append(
            f"The official algorithm prunes, and is timed, in one of {every} rounds only (1, "
            f"{1 + every}, …); a round without it counts with its time in the round before."
        )
    return notes


def _row(
    kind: str, chosen: list[bool], seconds: dict[str, list[float]], memory: dict[str, float]
) -> dict[str, object]:
    times = {
        name: [value for value, take in zip(values, chosen, strict=True) if take]
        for name, values in seconds.items()
    }
    ours, theirs = times["pxfast"], times["official"]
    return {
        "": kind,
        "rounds": sum(chosen),
        "pxfast s": sum(ours),
        **{f"{step} s": sum(times[step]) for step in STEPS},
        "other s": sum(ours) - sum(sum(times[step]) for step in STEPS),
        "official s": sum(theirs),
        "official ÷ pxfast": sum(theirs) / sum(ours),
        "per round": ratio(theirs, ours),
        "pxfast ms a round": spread([1e3 * value for value in ours]),
        "pxfast MiB": memory["pxfast"],
        "official MiB": memory["official"],
    }


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def _memory(candidate: str, arguments: argparse.Namespace) -> float:
    return peak_memory(
        prepare_prune,
        candidate=candidate,
        criterion=arguments.criterion,
        density=arguments.density ** (MEMORY_ROUNDS / arguments.rounds),
        **_setting.of(arguments),
    )
