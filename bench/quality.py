"""Test accuracy after a short training at 2% density: px, px-joint, random, official, dense.

Every method prunes the same initialised ResNet-20 with the same 10 digits of every class, then the
network is trained on the training part of the handwritten digits and tested on the rest; mean over
seeds, which choose initialisation, pruning set and the order of training. Runs that are finished
are kept in build/quality.partial.jsonl, so that an interrupted job goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from tqdm import tqdm

import pxfast
from bench._machine import ROOT, machine
from bench._result import Result
from pxfast.data import digits
from pxfast.reference import official
from pxfast.training import train_and_test

FINISHED = ROOT / "build" / "quality.partial.jsonl"
Run = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--density", type=float, default=0.02, help="fraction of weights to keep")
    parser.add_argument("--rounds", type=int, default=100, help="of every pruning")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--size", type=int, default=8, help="height and width of the digits")
    parser.add_argument("--epochs", type=int, default=10, help="of training")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what is compared"
    )


def measure(arguments: argparse.Namespace) -> Result:
    """Prune and train with every method and seed."""
    settings = {name: getattr(arguments, name) for name in ("density", "rounds", "size", "epochs")}
    finished = _finished(settings)
    runs = []
    cells = [(seed, method) for seed in range(arguments.seeds) for method in arguments.methods]
    for seed, method in tqdm(cells, desc="quality"):
        if (seed, method) not in finished:
            finished[seed, method] = _run(method, seed, **settings)
            _keep({"seed": seed, "method": method, **finished[seed, method]}, settings)
        runs.append({"seed": seed, "method": method, **finished[seed, method]})
    FINISHED.unlink(missing_ok=True)
    return Result(
        subject="digits",
        settings={
            "model": "resnet20",
            "data": "digits",
            "images per class to prune with": 10,
            "seeds": arguments.seeds,
            **settings,
        },
        rows=[_row(method, runs) for method in arguments.methods],
        notes=[
            "Accuracy on the test part, after the last epoch of pxfast.training's recipe; ± is "
            "the standard deviation over seeds. Chance is 10%.",
            "official is the last version of the paper's code (docs/method.md, section 8). When it "
            "has emptied a layer all scores are 0, and it then removes every weight.",
        ],
    )


def prune_with(
    method: str, model: nn.Module, images: Tensor, density: float, rounds: int, seed: int
) -> Mapping[str, Tensor]:
    """Return the masks that a method of `METHODS` gives; none for dense."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that residual branches became empty
        return METHODS[method](model, images, density, rounds, seed)


def _random(
    model: nn.Module, images: Tensor, density: float, rounds: int, seed: int
) -> Mapping[str, Tensor]:
    lot = torch.Generator().manual_seed(seed)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return pxfast.Scores(
        {names[id(m.weight)]: torch.rand(m.weight.shape, generator=lot) for m in layers}
    ).masks(density=density)


METHODS: dict[str, Callable[..., Mapping[str, Tensor]]] = {
    "px": lambda model, images, density, rounds, seed: pxfast.prune(
        model, images, density=density, rounds=rounds
    ),
    "px-joint": lambda model, images, density, rounds, seed: pxfast.prune(
        model, images, density=density, rounds=rounds, criterion="px-joint"
    ),
    "random": _random,
    "official": lambda model, images, density, rounds, seed: official.prune(
        model, images, density=density, rounds=rounds
    ),
    "dense": lambda model, images, density, rounds, seed: {},
}


def _run(method: str, seed: int, density: float, rounds: int, size: int, epochs: int) -> Run:
    """Prune with one method and one seed, train, and return the accuracy and what it took."""
    torch.manual_seed(seed)
    model = pxfast.models.resnet20(num_classes=10, in_channels=1).eval()
    train_set, test_set = digits(train=True, size=size), digits(train=False, size=size)
    subset = pxfast.balanced_subset(train_set, per_class=10, seed=seed)
    images = torch.stack([image for image, _ in subset])
    start = time.perf_counter()
    masks = prune_with(method, model, images, density, rounds, seed)
    seconds = time.perf_counter() - start
    kept = 1.0
    if masks:
        kept = pxfast.Masks(masks).density
        pxfast.Masks(masks).apply_(model)
    accuracy = train_and_test(model, train_set, test_set, epochs=epochs, lr=0.1, seed=seed)
    return {"accuracy": accuracy, "density": kept, "prune_seconds": seconds}


def _row(method: str, runs: list[Run]) -> dict[str, object]:
    mine = [run for run in runs if run["method"] == method]
    accuracies = [float(str(run["accuracy"])) for run in mine]
    return {
        "method": method,
        "density": float(str(mine[0]["density"])),
        "test accuracy %": round(statistics.mean(accuracies), 1),
        "±": round(statistics.stdev(accuracies), 1) if len(accuracies) > 1 else 0.0,
        "of each seed": ", ".join(f"{accuracy:.1f}" for accuracy in accuracies),
    }


def _identity(settings: Mapping[str, object]) -> dict[str, object]:
    """What has to be the same for a finished run to be used: the settings and the code."""
    facts = machine()
    return {"settings": dict(settings), "commit": facts["commit"], "torch": facts["torch"]}


def _keep(run: Run, settings: Mapping[str, object]) -> None:
    FINISHED.parent.mkdir(parents=True, exist_ok=True)
    with FINISHED.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"run": run, "of": _identity(settings)}) + "\n")


def _finished(settings: Mapping[str, object]) -> dict[tuple[object, object], Run]:
    """Return the runs of an interrupted job with the same settings and code."""
    if not FINISHED.exists():
        return {}
    lines = [json.loads(line) for line in FINISHED.read_text(encoding="utf-8").splitlines()]
    runs = [line["run"] for line in lines if line["of"] == _identity(settings)]
    return {(run.pop("seed"), run.pop("method")): run for run in runs}
