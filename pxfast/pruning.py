"""Iterative pruning: score, keep the best, score again with what is left."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pxfast.criteria import Criterion
from pxfast.errors import DataError, MaskError, RangeError
from pxfast.rng import RngState, preserved_rng
from pxfast.scoring import CRITERIA, Scorer
from pxfast.selection.checkpoint import Checkpoint, CheckpointFile
from pxfast.selection.fingerprint import data_fingerprint, masks_fingerprint, model_fingerprint
from pxfast.selection.masks import Masks, as_masks
from pxfast.selection.patterns import Pattern, named
from pxfast.selection.policy import Policy
from pxfast.selection.schedule import densities
from pxfast.selection.scores import Scores
from pxfast.selection.weights import check_fit, own_masks
from pxfast.unwrap import unwrapped


def prune(
    model: nn.Module,
    data: Any,
    *,
    density: float | None = None,
    sparsity: float | None = None,
    rounds: int = 100,
    schedule: str | Sequence[float] = "exponential",
    scope: str = "global",
    pattern: Pattern | str | None = None,
    min_density: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    criterion: str | Criterion = "px",
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: str = "running",
    include: Any = None,
    exclude: Any = None,
    output: Any = None,
    dtype: torch.dtype | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> Masks:
    """Finds masks by scoring and removing weights in rounds; the model itself stays as it is.

    Round r keeps the fraction density^(r/rounds) of the prunable weights, exactly
    ``round(fraction * total)`` of them, by scores taken with the masks of round r - 1 (Iurada et
    al., CVPR 2024, arXiv 2406.01820). Removed weights never return. Every round sees the same
    batches: all random generators are set back after each and after the last. Layers that become
    empty are named in a warning; if no path is left through the network, that is an error.

    Args:
        model: The model. Its own masks, by torch.nn.utils.prune, count as removed from the start.
        data: A tensor or a tuple is one batch, inputs first; a list, a DataLoader or any other
            iterable is batches. It is read once a round.
        density: Fraction of the prunable weights to keep, in (0, 1].
        sparsity: Fraction to remove, in [0, 1); instead of `density`.
        rounds: Number of rounds.
        schedule: "exponential" (the paper's), "linear", or a list of densities, one per round,
            which then sets the number of rounds.
        scope: "global": all weights compete; "layer": each layer keeps the same fraction.
        pattern: What is kept or removed as one: "2:4" or any N:M, "channels", "heads", an object
            of `pxfast.patterns`, or None for single weights. The density is then that of the
            groups; N:M sets it itself.
        min_density: Fraction that every layer keeps at least (and at least one weight, or group),
            against layer collapse. None: no such floor.
        checkpoint: File that is written after every round. If it exists, the run goes on from it,
            to the same bits as an uninterrupted run. If it cannot be written, a warning says so.
        criterion: The name of a criterion or an object that scores weights; see `pxfast.score`
            and docs/criteria.md.
        masks: Masks to start from by name, such as `Masks`: what they removed stays removed.
        batchnorm: See `pxfast.score`, as for the options below.
        include: Which weights are prunable.
        exclude: Which weights are not.
        output: Which output of the model counts.
        dtype: torch.bfloat16 or torch.float16 runs the forward under autocast.
        max_memory: Bytes for scoring to stay under, on top of the model and a batch.
        progress: True shows a progress bar, False none, None one if standard error is a terminal.

    Returns:
        The masks, in parameter order, with how they were made in `.provenance`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument is of the wrong type.
        DataError: If the data are a one-shot iterator, or cannot be fed to the model.
        MaskError: If masks or the pattern do not fit, or the density keeps nothing, more than are
            alive, or less than the floors.
        RangeError: If no path is left after a round.
        FileFormatError: If the checkpoint is damaged, or of another model, data or settings.
    """
    policy = Policy(scope, named(pattern).of(model), min_density)
    target = policy.resolve(density, sparsity)
    _refuse_iterator(data)
    count = len(densities(schedule, target, rounds))
    file = None if checkpoint is None else CheckpointFile(checkpoint)
    options = {
        "batchnorm": batchnorm, "include": include, "exclude": exclude, "output": output,
        "dtype": dtype, "max_memory": max_memory,
    }  # fmt: skip
    loop = _Loop(
        scorer=partial(Scorer(model, data, criterion, reuse=True, **options), progress=False),
        data=data,
        targets=lambda start: densities(schedule, target, rounds, start),
        policy=policy,
        initial=_initial_masks(model, masks),
        file=file,
    )
    settings = {
        "density": target, "schedule": schedule, "rounds": count, **policy.provenance(),
        "pattern": repr(policy.pattern), "criterion": criterion, **options,
        "masks": masks_fingerprint(loop.initial),
    }  # fmt: skip
    del settings["max_memory"]  # a run may go on in less memory
    with preserved_rng(data):
        saved = file and file.load()
        if saved:
            saved.rng_state().restore(data)
        state = _first_state(model, data, settings)
        if saved and file:
            saved.check(file.path, state.run)
            state = saved
        state = loop.finish(state, count, progress)
    return Masks(state.masks, state.provenance)


def _first_state(model: nn.Module, data: Any, settings: Mapping[str, Any]) -> Checkpoint:
    """Returns the state before the first round, with all that a resumed run must share."""
    run = {name: _describe(value, model) for name, value in settings.items()}
    run["model"] = model_fingerprint(model)
    rng = RngState.capture(data)
    with preserved_rng(data):
        run["data"] = data_fingerprint(data)
    provenance = {"criterion": run["criterion"], "seed": torch.initial_seed()}
    return Checkpoint(round=0, masks={}, run=run, provenance=provenance, rng=rng.to_json())


@dataclass(frozen=True)
class _Loop:
    """The rounds of pruning: states in, states out.

    Attributes:
        scorer: Scores the model under the masks it is given.
        data: The data, for the generators that they hold.
        targets: The density after each round, from the density before the first.
        policy: How scores become masks.
        initial: Masks before the first round, also of weights that are not prunable.
        file: Where every state is written, if anywhere.
    """

    scorer: Callable[[Mapping[str, Tensor]], Scores]
    data: Any
    targets: Callable[[float], list[float]]
    policy: Policy
    initial: Mapping[str, Tensor]
    file: CheckpointFile | None

    def finish(self, state: Checkpoint, rounds: int, progress: bool | None) -> Checkpoint:
        """Does the rounds that are left, and reports the layers that they empty."""
        reported = set(_empty(self.initial))
        disable = None if progress is None else not progress
        with tqdm(
            total=rounds, initial=state.round, desc="pruning", unit="round", disable=disable
        ) as bar:
            while state.round < rounds:
                scores = self.score(state)
                reported |= _report_branches(state, reported)
                state = self.select(state, scores)
                del scores  # of the model's size: the next round's lie in the same memory
                if self.file is not None:
                    self.file.save(state)
                bar.set_postfix_str(f"density {_density(state.masks):.3%}", refresh=False)
                bar.update()
        if not reported.issuperset(_empty(state.masks)):
            try:
                self.score(state)
            except RangeError as error:
                warnings.warn(str(error), UserWarning, stacklevel=3)
            else:
                _report_branches(state, reported)
        return state

    def score(self, state: Checkpoint) -> Scores:
        """Scores the model with a state's masks; every call sees the same random numbers."""
        try:
            with preserved_rng(self.data):
                scores = self.scorer({**self.initial, **state.masks})
            if not any(bool(score.any()) for score in scores.values()):
                raise RangeError("every score is 0")
        except RangeError as error:
            if state.round == 0:
                raise
            empty = _empty(state.masks)
            collapse = f" Layer collapse: no weight is left in {', '.join(empty)}." if empty else ""
            raise RangeError(
                f"after round {state.round}, at density {_density(state.masks):.3%}, the network "
                f"cannot be scored any more: {error}.{collapse} Ask for a higher density, prune in "
                f"more rounds, use min_density= or scope='layer', or leave layers out by exclude="
            ) from error
        if state.masks and list(scores) != list(state.masks):
            changed = ", ".join(sorted(set(scores) ^ set(state.masks))) or "their order"
            raise MaskError(
                f"round {state.round + 1} scored other weights than the rounds before: {changed}"
            )
        return scores

    def select(self, state: Checkpoint, scores: Scores) -> Checkpoint:
        """Keeps the highest scores: the state after one more round."""
        start = {name: mask for name, mask in self.initial.items() if name in scores}
        selection = self.policy.over(scores, state.masks or start)
        targets = self.targets(self.policy.over(scores, start).density)
        if state.round == 0:
            selection.check(targets[-1])
            _warn(selection.notes(), stacklevel=5)
        return replace(
            state,
            round=state.round + 1,
            masks=selection.masks(targets[state.round]),
            provenance={
                **state.provenance,
                **scores.provenance,
                **{name: state.run[name] for name in ("density", "rounds", "schedule")},
                **self.policy.provenance(),
                "model_fingerprint": state.run["model"],
                "data_fingerprint": state.run["data"],
            },
        )


def _initial_masks(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Returns what is removed from the start: by the model's own masks or by those given."""
    given = as_masks({} if masks is None else masks)
    check_fit(model, given)
    initial = own_masks(model)
    for name, mask in given.items():
        own = initial.get(name)
        initial[name] = mask if own is None else own & mask.to(own.device)
    return initial


def _refuse_iterator(data: object) -> None:
    if isinstance(data, Iterator):
        raise DataError(
            f"prune reads the data in every round, but got a {type(data).__name__}, which can be "
            f"read only once: give a DataLoader or a list of batches"
        )


def _describe(value: Any, model: nn.Module) -> Any:
    """Returns a setting as a value that JSON holds unchanged."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, nn.Module):
        names = [name for name, module in unwrapped(model).named_modules() if module is value]
        return f"module {names[0] if names else type(value).__qualname__}"
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_describe(item, model) for item in value]
        return sorted(items) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, torch.dtype):
        return str(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    if is_dataclass(value) and not isinstance(value, type):  # a criterion with its settings
        settings = {field.name: getattr(value, field.name) for field in fields(value)}
        name += f"({', '.join(f'{key}={_describe(x, model)}' for key, x in settings.items())})"
    return name


def _empty(masks: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of layers that have weights but keep none."""
    return [name for name, mask in masks.items() if mask.numel() and not bool(mask.any())]


def _density(masks: Mapping[str, Tensor]) -> float:
    """Returns the fraction of weights that masks keep."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.count_nonzero()) for mask in masks.values()) / total


def _report_branches(state: Checkpoint, reported: set[str]) -> set[str]:
    """Warns of newly empty layers of a network that still scores; returns their names."""
    names = [name for name in _empty(state.masks) if name not in reported]
    if names:
        meaning = (
            "Other paths still lead through the network, so these are empty branches: legal, but "
            "they compute nothing"
            if state.provenance["criterion"] in CRITERIA
            else "Unless other paths lead around them, the network computes a constant"
        )
        note = (
            f"round {state.round} (density {_density(state.masks):.3%}) left no weight in "
            f"{', '.join(names)}. {meaning}"
        )
        _warn([note], stacklevel=5)
    return set(names)


def _warn(notes: Iterable[str], stacklevel: int) -> None:
    """Warns without breaking the progress bar."""
    for note in notes:
        with tqdm.external_write_mode():
            warnings.warn(note, UserWarning, stacklevel=stacklevel)
