"""Test accuracy of pruned networks on handwritten digits: what each pruning method is worth.

A ResNet-8 with BatchNorm and a tiny vision transformer, each as it is initialised and after a
training, are pruned with the same 10 digits of every class, trained under the masks, and tested on
digits that no part of it has seen; a trained network also right after pruning, without training.
Mean and standard error over seeds, which choose initialisation, pruning set and order of training.

A pruning runs once per network, start, method and seed, and hands out its masks at all densities.
What is finished is kept in build/quality, so an interrupted job goes on where it stopped; remove
that folder to measure everything again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm import tqdm

import pxfast
from bench import _quality_plot
from bench._cells import Cells, digest
from bench._digit_networks import BATCH_SIZE, NETWORKS
from bench._machine import ROOT
from bench._methods import METHODS, NEEDS_BATCHNORM, Data, MaskDict, masks_at
from bench._result import Result, mean_with_error
from pxfast.data import digits
from pxfast.training import accuracy, train_and_test

FOLDER = ROOT / "build" / "quality"
PICTURE = ROOT / "docs" / "quality.svg"
SOURCES = ("quality.py", "_methods.py", "_digit_networks.py")
STARTS = ("init", "pretrained")
UNTRAINED = (0.5, 0.3)  # besides the others, where networks are tested without training
DENSE = "dense"
Cell = dict[str, object]
Key = tuple[object, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what is compared"
    )
    parser.add_argument(
        "--densities", nargs="+", type=float, default=[0.2, 0.1, 0.05, 0.02, 0.01],
        help="fractions of weights to keep, falling",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--rounds", type=int, default=20, help="to the lowest density")
    parser.add_argument("--longer", type=int, default=1, help="times the epochs of each training")
    parser.add_argument(
        "--plot", type=Path, help="the picture's file (docs/quality.svg, with --longer none)"
    )


def measure(arguments: argparse.Namespace) -> Result:
    """Prune and train with every network, start, seed and method."""
    settings = {name: getattr(arguments, name) for name in ("densities", "rounds", "longer")}
    of = digest(SOURCES, settings)
    cells = Cells(FOLDER / "cells.jsonl", of)
    methods = [*arguments.methods, DENSE]
    columns = [*_untrained(arguments.starts, arguments.densities), *arguments.densities]
    keys: list[Key] = [
        (network, start, method, seed)
        for seed in range(arguments.seeds)
        for network in arguments.networks
        for start in arguments.starts
        for method in methods
        if method not in NEEDS_BATCHNORM or NETWORKS[network].batchnorm
    ]
    for key in (bar := tqdm(keys, desc="quality", unit="pruning")):
        bar.set_postfix_str(", ".join(map(str, key)))
        if key not in cells:
            cells.keep(key, _run(*key, **settings, folder=FOLDER / of))
    result = Result(
        subject="digits" if arguments.longer == 1 else f"digits-{arguments.longer}-times-longer",
        settings={
            "image": [1, 8, 8],
            "images per class to prune with": 10,
            "seeds": arguments.seeds,
            "densities": arguments.densities,
            "rounds": arguments.rounds,
            **{name: _about(name, arguments.longer) for name in arguments.networks},
        },
        rows=[
            row
            for network in arguments.networks
            for start in arguments.starts
            for row in _rows(network, start, methods, columns, arguments.seeds, cells)
        ],
        notes=_notes(keys, cells),
    )
    if plot := arguments.plot or (PICTURE if arguments.longer == 1 else None):
        _quality_plot.draw(result, plot)
    return result


def _about(name: str, longer: int) -> str:
    network = NETWORKS[name]
    size = sum(parameter.numel() for parameter in network.build().parameters())
    trainings = (
        f"{longer * epochs} epochs from {lr:g} ({start})"
        for start, (lr, epochs) in (("init", network.init), ("pretrained", network.pretrained))
    )
    how = f"{network.optimiser.__name__}, batches of {BATCH_SIZE}, cosine"
    return f"{size} parameters, {how}, {', '.join(trainings)}"


# ---- one pruning, and what becomes of its networks


def _run(
    network: str, start: str, method: str, seed: int, *,
    densities: list[float], rounds: int, longer: int, folder: Path,
) -> Cell:  # fmt: skip
    """Prune once, and return the accuracies at each density."""
    train_set, test_set = digits(train=True), digits(train=False)
    train = functools.partial(
        _train, network=network, seed=seed, longer=longer, train_set=train_set, test_set=test_set
    )
    model = _started(network, start, seed, train, folder)
    untrained = _untrained([start], densities)
    stops, found = [1.0], [{}]
    begun = time.perf_counter()
    if method != DENSE:
        stops = [*untrained, *densities]
        found = masks_at(method, model, _pruning_set(train_set, seed), stops, rounds, seed)
    seconds = time.perf_counter() - begun
    at = {}
    for density, masks in zip(stops, found, strict=True):
        if isinstance(masks, str):
            at[str(density)] = {"why": masks}
            continue
        pruned, kept = _pruned(model, masks)
        cell: Cell = {"kept": kept}
        if start == "pretrained":
            cell["pruned"] = accuracy(pruned, test_set)
            if NETWORKS[network].batchnorm:
                cell["renewed"] = accuracy(_renewed(pruned, train_set), test_set)
        if density not in untrained:
            if kept:  # without weights there is nothing to train
                train(pruned, start=start)
            cell["trained"] = accuracy(pruned, test_set)
        at[str(density)] = cell
    return {"prune_seconds": seconds, "at": at}


def _untrained(starts: Sequence[str], densities: Sequence[float]) -> list[float]:
    """Return the densities at which only trained networks are tested, right after pruning."""
    return [d for d in UNTRAINED if d > densities[0]] if "pretrained" in starts else []


def _train(
    model: nn.Module, *, network: str, start: str, seed: int, longer: int,
    train_set: Dataset, test_set: Dataset,
) -> None:  # fmt: skip
    """Train by the network's recipe for a start."""
    lr, epochs = getattr(NETWORKS[network], start)
    train_and_test(
        model, train_set, test_set, epochs=longer * epochs, lr=lr, batch_size=BATCH_SIZE,
        optimiser=NETWORKS[network].optimiser, seed=seed, progress=False,
    )  # fmt: skip


def _started(
    network: str, start: str, seed: int, train: Callable[..., None], folder: Path
) -> nn.Module:
    """Return a network as it is initialised, or trained: once, and then from its file."""
    torch.manual_seed(seed)
    model = NETWORKS[network].build().eval()
    if start == "pretrained":
        path = folder / f"{network}-{seed}.pt"
        if not path.exists():
            train(model, start="init")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
        model.load_state_dict(torch.load(path, weights_only=True))
    return model


def _pruning_set(train_set: TensorDataset, seed: int) -> Data:
    """Return ten digits of every class, one batch."""
    places = list(pxfast.balanced_subset(train_set, per_class=10, seed=seed).indices)
    images, labels = (tensor[places] for tensor in train_set.tensors)
    return images, labels


def _pruned(model: nn.Module, masks: MaskDict) -> tuple[nn.Module, float]:
    """Return a copy under the masks, and the fraction of weights that it keeps."""
    pruned = copy.deepcopy(model)
    if not masks:
        return pruned, 1.0
    chosen = pxfast.Masks(masks)
    return chosen.apply_(pruned), chosen.density


@torch.no_grad()
def _renewed(model: nn.Module, train_set: Dataset) -> nn.Module:
    """Return a copy whose BatchNorm has the statistics of the pruned network."""
    model = copy.deepcopy(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for images, _ in DataLoader(train_set, 128):
        model(images)
    return model.eval()


# ---- tables


ACCURACIES = {
    "trained": "after training",
    "pruned": "right after pruning",
    "renewed": "the same with BatchNorm's statistics renewed",
}


def _rows(
    network: str, start: str, methods: list[str], columns: list[float], seeds: int, cells: Cells
) -> list[dict[str, object]]:
    """Return a row per accuracy and method, a column per density: the mean over the seeds."""
    rows = []
    for accuracy_name, title in ACCURACIES.items():
        for method in methods:
            if (network, start, method, 0) not in cells:
                continue
            found = [cells[network, start, method, seed]["at"] for seed in range(seeds)]
            row = {
                f"{100 * density:g}%": _spread(found, 1.0 if method == DENSE else density,
                                               accuracy_name)
                for density in columns
            }  # fmt: skip
            if any(row.values()):
                names = {"network": network, "start": start, "accuracy %": title}
                rows.append({**names, "method": method, **row})
    return rows


def _spread(found: list[object], density: float, name: str) -> object:
    """Return mean, standard error and the values of each seed; "" where nothing was measured."""
    cells = [at[str(density)] for at in found if isinstance(at, dict) and str(density) in at]
    measured = [cell for cell in cells if name in cell or "why" in cell]
    return mean_with_error([cell.get(name) for cell in measured])


def _notes(keys: list[Key], cells: Cells) -> list[str]:
    """Return what a reader must know, with the runs that did not keep what they should."""
    notes = [
        "Accuracy on 450 digits that nothing was trained or pruned with; mean ± standard error "
        "over the seeds. Chance is 10%.",
        "Methods in rounds (px, px-joint, synflow, official) share one exponential schedule to "
        "the lowest density; the others score once.",
        "official is the last version of the paper's code (docs/method.md, section 8); when it has "
        "emptied a layer all scores are 0, and it then removes every weight.",
    ]
    odd: dict[str, dict[str, list[str]]] = {}
    for network, start, method, seed in keys:
        for density, cell in cells[network, start, method, seed]["at"].items():
            if "why" in cell:
                what = f"fails ({cell['why'].partition('.')[0]})"
            elif abs(cell["kept"] - float(density)) > 0.01 * float(density):
                what = f"keeps {100 * cell['kept']:.2g}%"
            else:
                continue
            where = odd.setdefault(f"{method}, {network}, {start}", {})
            where.setdefault(f"at {100 * float(density):g}% {what}", []).append(str(seed))
    for who, found in odd.items():
        said = "; ".join(f"{what} (seed {', '.join(seeds)})" for what, seeds in found.items())
        notes.append(f"{who}: {said}.")
    return notes
