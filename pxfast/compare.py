"""Several criteria on one model: what each keeps, what it costs, and how well the rest trains."""

from __future__ import annotations

import copy
import inspect
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pxfast._optional import require
from pxfast.batches import batches
from pxfast.criteria import Criterion, get
from pxfast.criteria.functional import functional
from pxfast.errors import PxfastError
from pxfast.paths.outputs import Select
from pxfast.preparation import Choice
from pxfast.pruning import prune
from pxfast.scoring import score
from pxfast.selection.budget import resolve_density
from pxfast.selection.masks import Masks
from pxfast.selection.scores import Scores
from pxfast.unwrap import unwrapped

DEFAULT_CRITERIA = ("px", "px-joint", "snip", "synflow", "magnitude", "random")
_TICKS = 40


@dataclass(frozen=True)
class Entry:
    """What one criterion made of the model.

    Attributes:
        criterion: Its name.
        rounds: Rounds of pruning.
        seconds: Of pruning, without training.
        masks: What it keeps, or None if it failed.
        overlap: Kept by this and by the reference criterion, of what either keeps (Jaccard), in
            [0, 1]; None without the reference's masks.
        accuracy: In percent after training; None without training.
        error: Why there are no masks.
    """

    criterion: str
    rounds: int
    seconds: float
    masks: Masks | None = None
    overlap: float | None = None
    accuracy: float | None = None
    error: str | None = None

    @property
    def densities(self) -> dict[str, float]:
        """Density of each layer by the name of its weight."""
        return {} if self.masks is None else {x.name: x.density for x in self.masks.layers}

    @property
    def empty(self) -> list[str]:
        """Layers of which nothing is left."""
        return [name for name, density in self.densities.items() if not density]

    def facts(self) -> dict[str, Any]:
        """What JSON shows of it."""
        densities = self.densities
        return {
            "criterion": self.criterion,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "density": None if self.masks is None else self.masks.density,
            "empty_layers": self.empty,
            "lowest_layer_density": min(densities.values(), default=None),
            "median_layer_density": statistics.median(densities.values()) if densities else None,
            "overlap": self.overlap,
            "accuracy": self.accuracy,
            "error": self.error,
            "layer_densities": densities,
        }


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        entries: One per criterion, in the order in which they were asked for.
        density: Fraction of the weights that was to be kept.
        reference: The criterion whose masks the others are compared with.
        weights: Number of weights that could be pruned.
        dense_accuracy: In percent, of the unpruned model after the same training; None without it.
    """

    entries: tuple[Entry, ...]
    density: float
    reference: str
    weights: int
    dense_accuracy: float | None = None

    def table(self) -> str:
        """One row per criterion, as plain text."""
        trained = any(entry.accuracy is not None for entry in self.entries)
        head = ["criterion", "rounds", "seconds", "density", "empty layers", "lowest layer"]
        head += ["median layer", f"overlap {self.reference}"] + ["accuracy"] * trained
        rows = [_row(entry, trained) for entry in self.entries if entry.masks is not None]
        if self.dense_accuracy is not None:
            rows.append(["dense", *[""] * 3, *[""] * 4, f"{self.dense_accuracy:.1f}%"])
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        ]
        rule = "-" * max(map(len, lines))
        failed = [f"{x.criterion} failed: {x.error}" for x in self.entries if x.masks is None]
        return "\n".join([lines[0], rule, *lines[1:], *failed])

    def to_json(self) -> str:
        """Everything, with the density of every layer, as a JSON object."""
        return json.dumps(
            {
                "density": self.density,
                "reference": self.reference,
                "weights": self.weights,
                "dense_accuracy": self.dense_accuracy,
                "criteria": [entry.facts() for entry in self.entries],
            },
            indent=2,
        )


class InterruptedComparison(KeyboardInterrupt):
    """Ctrl-C while criteria were compared.

    Attributes:
        comparison: What was finished before; criteria that were not are missing, and so are
            accuracies.
    """

    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self.comparison = comparison


def compare(
    model: nn.Module,
    data: Any,
    *,
    density: float | None = None,
    sparsity: float | None = None,
    criteria: Sequence[str | Criterion] = DEFAULT_CRITERIA,
    rounds: int | None = None,
    batchnorm: str = "running",
    include: Choice = None,
    exclude: Choice = None,
    output: Select = None,
    max_memory: int | None = None,
    train: Callable[[nn.Module], float] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Comparison:
    """Prunes one model by several criteria, which all compete for the same weights.

    Args:
        model: The model, which stays as it is.
        data: As for `pxfast.prune`; with labels, if a criterion needs them.
        density: Fraction of the prunable weights to keep, in (0, 1].
        sparsity: Fraction to remove, instead of `density`.
        criteria: Names of `pxfast.criteria.NAMES`, or objects.
        rounds: Rounds of pruning by each criterion. By default as in its paper: 100 for px,
            px-joint, synflow, synflow-l2 and ntk-sap, 1 for the others.
        batchnorm: As for `pxfast.score`, for px and px-joint.
        include: Which weights are prunable.
        exclude: Which are not.
        output: Which output of the model counts; for the criteria that take it.
        max_memory: As for `pxfast.score`, for px and px-joint.
        train: Trains and tests a classifier in place and returns its accuracy in percent, such as
            `pxfast.training.train_and_test` with its data. It gets copies of the model: as it is,
            and under the masks of each criterion.
        progress: True shows a progress bar, False none, None one if standard error is a terminal.
        options: More options of `pxfast.prune`, such as scope, schedule or pattern.

    Returns:
        The masks of every criterion and what there is to say about them. A criterion that fails,
        because the network collapses or an operation has no rule, is an entry with its error.

    Raises:
        PxfastError: If an argument is out of its range, or no criterion works at all.
        InterruptedComparison: On Ctrl-C, a KeyboardInterrupt with what was finished.
    """
    target = resolve_density(density, sparsity)
    chosen = [get(each) if isinstance(each, str) else each for each in criteria]
    if not chosen:
        raise PxfastError("criteria: expected at least one, got none")
    model = unwrapped(model)
    names, total = _used_weights(model, data, include, exclude, output)
    settings = {"batchnorm": batchnorm, "output": output, "max_memory": max_memory}
    planned = [getattr(each, "rounds", 1) if rounds is None else rounds for each in chosen]
    torch.empty(1, device="meta").square()  # loads torch's compiler once, outside the times
    disable = None if progress is None else not progress
    entries, failures = [], []
    with tqdm(total=sum(planned), unit="round", disable=disable) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty layers: the table shows them
        for criterion, count in zip(chosen, planned, strict=True):
            watched = _Watched(criterion, settings, bar, bar.n + count)
            bar.set_description(watched.name)
            start = time.perf_counter()
            try:
                found: Masks | None = prune(
                    model, data, density=target, rounds=count, criterion=watched, include=names,
                    progress=False, **options,
                )  # fmt: skip
                error = None
            except PxfastError as failure:
                found, error = None, str(failure)
                failures.append(failure)
            except KeyboardInterrupt:
                if len(failures) == len(entries):
                    raise
                raise InterruptedComparison(_assessed(entries, target, total)) from None
            seconds = time.perf_counter() - start
            entries.append(Entry(watched.name, count, seconds, found, error=error))
            bar.update(watched.end - bar.n)
    if len(failures) == len(entries):
        raise failures[0]
    comparison = _assessed(entries, target, total)
    return comparison if train is None else _trained(comparison, model, train)


def plot(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Draws the density of every layer by every criterion, as PNG, SVG or PDF.

    Args:
        comparison: What `compare` returned.
        path: The picture's file; its suffix chooses the format.

    Raises:
        MissingPackageError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    what, extra = "a picture of the comparison", "pxfast[demo]"
    figure_kind = require("matplotlib.figure", what, extra).Figure
    ticker = require("matplotlib.ticker", what, extra)
    entries = [entry for entry in comparison.entries if entry.masks is not None]
    names = list(entries[0].densities)
    positive = [d for entry in entries for d in entry.densities.values() if d]
    floor = min(positive) / 2  # where empty layers are drawn
    size = 4 if len(names) <= _TICKS else 2  # of the markers
    figure = figure_kind(figsize=(min(14, max(7, 3 + 0.3 * len(names))), 5.2), layout="constrained")
    axes = figure.subplots()
    for index, entry in enumerate(entries):
        heights = [entry.densities.get(name, float("nan")) or floor for name in names]
        empty = [place for place, name in enumerate(names) if entry.densities.get(name) == 0]
        colour, marker = f"C{index % 10}", "osD^vPX*d<>"[index % 11]
        style = {"color": colour, "linewidth": 1.1, "alpha": 0.85}
        axes.plot(heights, marker=marker, markersize=size, label=entry.criterion, **style)
        axes.scatter(empty, [floor] * len(empty), marker="x", s=4 * size**2, color=colour, zorder=3)
    axes.axhline(comparison.density, color="#9aa5b1", linewidth=1, zorder=0)
    axes.set(yscale="log", ylim=(floor / 1.25, 1.25), ylabel="weights kept")
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(True, axis="y", which="major", color="#e4e7eb", linewidth=0.8)
    shown = range(0, len(names), -(-len(names) // _TICKS))
    axes.set_xticks(shown, [names[place] for place in shown], rotation=90, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    note = "; × marks empty layers" if any(entry.empty for entry in entries) else ""
    axes.set_title(
        f"{100 * comparison.density:.3g}% of {comparison.weights:,} weights kept (grey line){note}",
        fontsize=10,
        loc="left",
    )
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


@dataclass
class _Watched:
    """A criterion that moves the progress bar by one at every call.

    Attributes:
        criterion: The criterion.
        settings: Options for it, if it takes them.
        bar: The progress bar.
        end: Where the bar stands after its last round.
    """

    criterion: Any
    settings: Mapping[str, Any]
    bar: tqdm
    end: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = str(getattr(self.criterion, "name", type(self.criterion).__name__))
        taken = inspect.signature(self.criterion.score).parameters
        any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
        self.settings = {k: v for k, v in self.settings.items() if any_name or k in taken}

    def score(
        self, model: nn.Module, data: Any, *, masks: Mapping[str, Tensor], include: Choice = None
    ) -> Scores:
        """Scores by the criterion."""
        scores = score(
            model, data, criterion=self.criterion, masks=masks, include=include, progress=False,
            **self.settings,
        )  # fmt: skip
        self.bar.update(min(1, self.end - self.bar.n))
        return scores


def _used_weights(
    model: nn.Module, data: Any, include: Choice, exclude: Choice, output: Select
) -> tuple[list[str], int]:
    """Names of the prunable weights that the output uses, and how many numbers they hold."""
    with functional(model, data, None, include, exclude, output) as network:
        leaves = network.leaves()
        one = network.prepared(next(batches(data)).samples(0, 1), number=1)
        used = network.gradients(network.outputs(leaves, one).sum(), leaves)
        names = [name for name in network.scored if name in used]
        if not names:
            raise PxfastError("there are no prunable weights: the output uses none of them")
        return names, sum(network.weights[name].numel() for name in names)


def _assessed(entries: Sequence[Entry], density: float, weights: int) -> Comparison:
    """Compares all masks with the reference's."""
    worked = [entry for entry in entries if entry.masks is not None]
    reference = next((entry for entry in worked if entry.criterion == "px"), worked[0])
    assert reference.masks is not None
    assessed = (
        entry if entry.masks is None
        else replace(entry, overlap=jaccard(entry.masks, reference.masks))
        for entry in entries
    )  # fmt: skip
    return Comparison(tuple(assessed), density, reference.criterion, weights)


def _trained(
    comparison: Comparison, model: nn.Module, train: Callable[[nn.Module], float]
) -> Comparison:
    """Trains copies of the model under the masks of each criterion, and an unpruned one."""
    entries = list(comparison.entries)
    try:
        for place, entry in enumerate(entries):
            if entry.masks is not None:
                accuracy = train(entry.masks.apply_(copy.deepcopy(model)))
                entries[place] = replace(entry, accuracy=accuracy)
        dense = train(copy.deepcopy(model))
    except KeyboardInterrupt:
        raise InterruptedComparison(replace(comparison, entries=tuple(entries))) from None
    return replace(comparison, entries=tuple(entries), dense_accuracy=dense)


def jaccard(masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Weights that both keep, of the weights that either keeps: |A ∩ B| / |A ∪ B|, in [0, 1]."""
    both = either = 0
    for name in masks.keys() & others.keys():
        a, b = masks[name], others[name].to(masks[name].device)
        both += int((a & b).sum())
        either += int((a | b).sum())
    return both / either if either else 1.0


def _row(entry: Entry, trained: bool) -> list[str]:
    facts = entry.facts()
    cells = [
        entry.criterion,
        str(entry.rounds),
        f"{entry.seconds:.2f}",
        f"{100 * facts['density']:.3f}%",
        f"{len(entry.empty)} of {len(entry.densities)}",
        f"{100 * facts['lowest_layer_density']:.3g}%",
        f"{100 * facts['median_layer_density']:.3g}%",
        f"{100 * facts['overlap']:.1f}%",
    ]
    accuracy = "" if entry.accuracy is None else f"{entry.accuracy:.1f}%"
    return [*cells, accuracy] if trained else cells
