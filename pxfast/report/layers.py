"""The facts of a report: what is left of each layer, and what that means for the network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pxfast.errors import MaskError, PxfastError, RangeError
from pxfast.report.flops import count_flops
from pxfast.scoring import CRITERIA, score
from pxfast.selection.fingerprint import model_fingerprint
from pxfast.selection.masks import Masks
from pxfast.selection.scores import Scores
from pxfast.selection.weights import check_fit

COLLAPSED, EMPTY_BRANCH, EMPTY, CUT_OFF = "collapsed", "empty branch", "empty", "cut off"
MARKS = {
    COLLAPSED: "no weight is left, and no path leads around the layer: the network computes a "
    "constant",
    EMPTY_BRANCH: "no weight is left, but other paths lead around the layer: legal, it computes "
    "nothing",
    EMPTY: "no weight is left; whether other paths lead around the layer shows with a model and "
    "data",
    CUT_OFF: "weights are left, but no path runs through them: they can go as well",
}


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: Of its weight.
        shape: Of its weight.
        weights: How many numbers that are.
        kept: How many of them the masks keep.
        flops: Operations that one sample's forward does with the weight, unpruned; None if unknown.
        path_mass: Share of the network's squared-path sum that runs through the kept weights, in
            [0, 1] but for rounding; None if unknown.
        mark: One of `MARKS`, or empty.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    flops: int | None = None
    path_mass: float | None = None
    mark: str = ""

    @property
    def density(self) -> float:
        """Fraction of the weights that are kept."""
        return self.kept / self.weights if self.weights else 1.0

    @property
    def standing(self) -> str:
        """What charts colour it by: "kept", "legal" where the mark does no harm, or "bad"."""
        if self.mark in (EMPTY_BRANCH, CUT_OFF):
            return "legal"
        return "bad" if self.mark else "kept"

    @property
    def flops_kept(self) -> int | None:
        """Operations with kept weights: all weights of a layer take part in equally many."""
        if self.flops is None:
            return None
        return self.flops * self.kept // self.weights if self.weights else 0


@dataclass(frozen=True)
class Report:
    """All layers.

    Attributes:
        rows: In the model's parameter order.
        provenance: How the masks were made.
        flops: Operations of one sample's whole forward, layers without masks too; None if unknown.
    """

    rows: tuple[Row, ...]
    provenance: Mapping[str, Any]
    flops: int | None = None

    @property
    def weights(self) -> int:
        """Number of weights that could be pruned."""
        return sum(row.weights for row in self.rows)

    @property
    def kept(self) -> int:
        """Number of weights that are kept."""
        return sum(row.kept for row in self.rows)

    @property
    def density(self) -> float:
        """Fraction of the weights that are kept."""
        return self.kept / self.weights

    @property
    def flops_kept(self) -> int | None:
        """Operations that are left, those without a mask too."""
        if self.flops is None:
            return None
        return self.flops - sum((row.flops or 0) - (row.flops_kept or 0) for row in self.rows)

    @property
    def has_path_mass(self) -> bool:
        """Whether the path mass of the layers is known."""
        return any(row.path_mass is not None for row in self.rows)

    @property
    def marks(self) -> list[str]:
        """The marks that occur, in the order of `MARKS`."""
        return [mark for mark in MARKS if any(row.mark == mark for row in self.rows)]


def build(
    masks: Masks,
    model: nn.Module | None = None,
    data: Any = None,
    scores: Scores | None = None,
) -> Report:
    """Gathers what is known about each layer.

    Args:
        masks: The masks.
        model: The model that was pruned, unmasked or masked; it stays as it is. With `data` it
            gives the FLOPs, the path mass, and which empty layers mean a collapse.
        data: As for `pxfast.score`. The FLOPs are those of its first sample.
        scores: By px or px-joint, of the same weights: the path mass is taken from them, and is
            then that of the network that they were scored on.

    Returns:
        The report.

    Raises:
        MaskError: If the masks do not fit the model or the scores.
        PxfastError: If the scores are not of px or px-joint, or only one of model and data is
            given.
    """
    if (model is None) != (data is None):
        raise PxfastError("report: give model and data together, or neither")
    mass = None if scores is None else _mass_of(scores, masks)
    flops: Mapping[str, int] = {}
    total, marks = None, {}
    if model is not None:
        check_fit(model, masks)
        _compare_fingerprints(model, masks)
        flops, total = count_flops(model, data, masks)
        remaining = _remaining_mass(model, data, masks)
        marks = _marks(model, data, masks, remaining)
        if mass is None:
            mass = remaining or dict.fromkeys(masks, 0.0)
    rows = tuple(
        Row(
            *(layer.name, layer.shape, layer.weights, layer.kept),
            flops=flops.get(layer.name),
            path_mass=None if mass is None else mass.get(layer.name),
            mark=marks.get(layer.name, EMPTY if layer.weights and not layer.kept else ""),
        )
        for layer in masks.layers
    )
    return Report(rows, masks.provenance, total)


def _mass_of(scores: Scores, masks: Masks) -> dict[str, float]:
    """The share of the path mass of the scored network that runs through kept weights."""
    criterion = scores.provenance.get("criterion")
    if criterion not in CRITERIA:
        raise PxfastError(
            f"scores: the path mass needs scores by {' or '.join(CRITERIA)}, got those of "
            f"{criterion or 'an unknown criterion'}"
        )
    for name, mask in masks.items():
        if name not in scores:
            raise MaskError(f"scores: there are none for '{name}': are they of another model?")
        if scores[name].shape != mask.shape:
            raise MaskError(
                f"scores: those of '{name}' have shape {list(scores[name].shape)}, the mask has "
                f"{list(mask.shape)}: are they of another model?"
            )
    return {
        name: float(torch.where(mask, scores[name], 0).sum(dtype=torch.float64))
        for name, mask in masks.items()
    }


def _remaining_mass(model: nn.Module, data: Any, masks: Masks) -> dict[str, float] | None:
    """The share of the pruned network's path mass by layer; None if no path is left at all."""
    criterion = masks.provenance.get("criterion")
    try:
        totals = _scored(
            model,
            data,
            masks,
            criterion=criterion if criterion in CRITERIA else "px",
            batchnorm=masks.provenance.get("batchnorm", "running"),
        ).totals()
    except RangeError:
        return None
    return {name: totals.get(name, 0.0) for name in masks}


def _marks(
    model: nn.Module, data: Any, masks: Masks, remaining: Mapping[str, float] | None
) -> dict[str, str]:
    """What empty layers and layers without a path mean to the network."""
    empty = [layer.name for layer in masks.layers if layer.weights and not layer.kept]
    if remaining is not None:
        cut_off = [name for name, mass in remaining.items() if not mass and name not in empty]
        return dict.fromkeys(empty, EMPTY_BRANCH) | dict.fromkeys(cut_off, CUT_OFF)
    alone = [name for name in empty if _cuts_all_paths(model, data, name, masks[name])]
    marks = dict.fromkeys(empty, EMPTY_BRANCH)
    return marks | dict.fromkeys(alone or empty, COLLAPSED)


def _cuts_all_paths(model: nn.Module, data: Any, name: str, mask: Tensor) -> bool:
    """Whether the network has no path if this layer is empty and all others are whole."""
    try:
        _scored(model, data, {name: mask})
    except RangeError:
        return True
    return False


def _scored(model: nn.Module, data: Any, masks: Mapping[str, Tensor], **options: Any) -> Scores:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of weights that the output never uses
        return score(model, data, masks=masks, progress=False, **options)


def _compare_fingerprints(model: nn.Module, masks: Masks) -> None:
    """Warns if the model has other weights than the one that was pruned."""
    pruned = masks.provenance.get("model_fingerprint")
    if pruned is not None and pruned != model_fingerprint(model):
        warnings.warn(
            "the model's weights are not those that were pruned (another seed, trained since, or "
            "masked): densities and FLOPs hold, the path mass is that of these weights",
            UserWarning,
            stacklevel=3,
        )
