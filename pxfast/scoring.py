"""score(): Path eXclusion scores of a model's weights, without copying or changing the model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pxfast._version import __version__
from pxfast.batches import Batch, batches, brings_masks, peeked, progress_bar
from pxfast.errors import PxfastError, RangeError
from pxfast.paths.names import named_weights
from pxfast.paths.outputs import Select
from pxfast.paths.passes import Passes, Structure
from pxfast.paths.pathsum import PathSum
from pxfast.paths.spare import Memory
from pxfast.paths.underflow import underflowed
from pxfast.paths.weights import Weights
from pxfast.preparation import Choice, layer_weights, prepared
from pxfast.selection.scores import Scores

if TYPE_CHECKING:
    from pxfast.criteria import Criterion

CRITERIA = ("px", "px-joint")


def score(
    model: nn.Module,
    data: Any,
    *,
    criterion: str | Criterion = "px",
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: Literal["running", "data"] = "running",
    include: Choice = None,
    exclude: Choice = None,
    output: Select = None,
    dtype: torch.dtype | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> Scores:
    """Score every prunable weight by how much the trace of the Neural Tangent Kernel depends on it.

    The model runs its own forward, in evaluation mode, on path tensors; it is left exactly as it
    was.

    Args:
        model: any network whose operations have rules (``pxfast.rule`` adds more). Models wrapped
            by torch.compile, DistributedDataParallel or DataParallel are unwrapped.
        data: a tensor, an ``(inputs, labels)`` tuple or a dictionary is one batch; a loader, a list
            or any other iterable is a sequence of batches. Labels are not used.
        criterion: ``"px"``, the paper's S/R (docs/method.md, section 2), or ``"px-joint"``, which
            keeps weights and data inside one sum over paths (section 3). Also the name of another
            criterion to compare with, or an object (docs/criteria.md): the rest of this page is
            about the first two, others take only some of the options.
        masks: 0/1 tensors by weight name (missing names: all ones), on top of the model's own
            masks.
        batchnorm: normalise with BatchNorm's ``"running"`` statistics, or with those of each batch
            (``"data"``): for px-joint on pretrained networks at high sparsity. The result then
            depends on how the data is batched.
        include: names, globs or modules whose weights are scored (default: all linear and
            convolution weights).
        exclude: names, globs or modules whose weights are left out.
        output: which output counts: a key, an index or a function of the model's result. Default:
            all floating-point outputs together, ``logits`` alone if present.
        dtype: torch.bfloat16 or torch.float16 runs the forward under autocast; path sums stay
            float32 (float64 for float64 models).
        max_memory: bytes to stay under on top of the model and a batch, scores included, by
            splitting batches: what a sample takes is counted while the first one runs.
        progress: show a progress bar over the batches. Default: only on a terminal.

    Returns:
        S/R per weight, float32 (float64 for float64 models), non-negative, exactly 0 where masked,
        in the model's parameter order. ``scores.provenance`` says how they were made.

    Raises:
        NoRuleError: the model uses an operation without a rule; the message shows how to add one.
        DataError: the data is empty, not finite, or the model cannot run on it.
        MaskError: masks do not fit the model.
        PxfastError: an argument is out of its range, or ``max_memory`` is too small for one sample
            (a batch, where samples meet in its statistics).
        RangeError: no path reaches the output, or path sums left the range.

    Source: Iurada, Ciccone, Tommasi, CVPR 2024, arXiv 2406.01820, equations of section 3; px-joint
    is pxfast's own.

    Example:
        >>> import torch, pxfast
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> scores = pxfast.score(model, torch.randn(16, 4))
        >>> [round(total, 4) for total in scores.totals().values()]  # each layer cuts all paths
        [1.0, 1.0]
    """
    scorer = Scorer(
        model, data, criterion, batchnorm=batchnorm, include=include, exclude=exclude,
        output=output, dtype=dtype, max_memory=max_memory,
    )  # fmt: skip
    return scorer(masks, progress)


class Scorer:
    """`score` again and again, under masks that only ever lose weights: what cannot change under
    them is found once."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        criterion: str | Criterion = "px",
        reuse: bool = False,
        **options: Any,
    ):
        """The arguments are those of `score`; with ``reuse`` scores are made where earlier ones
        lay, once nobody holds these any more."""
        self.model, self.data, self.criterion, self.options = model, data, criterion, options
        self._memory = Memory() if reuse and options.get("max_memory") is None else None
        self._structure: Structure | None = None
        self._rows: tuple[dict[str, Tensor] | None, dict[str, int]] = (None, {})
        self._exact: set[str] = set()  # weights of which no square has become 0,
        self._pathless: set[str] = set()  # those that no path passes, whatever gates do, and
        self._version: int | None = None  # that of all parameters then

    def __call__(
        self, masks: Mapping[str, Tensor] | None = None, progress: bool | None = None
    ) -> Scores:
        """Scores under masks; ``progress`` as in `score`."""
        if self.criterion not in CRITERIA:
            from pxfast.criteria.registry import score_by  # which builds on this module

            return score_by(
                self.criterion, self.model, self.data, masks=masks, progress=progress,
                **self.options,
            )  # fmt: skip
        with prepared(self.model, self.data, masks=masks, **self.options) as passes:
            self._forget_if_changed(passes.model)
            passes.structure, passes.pathless = self._structure, self._pathless
            if self._memory is not None:
                passes.weights.spare = self._memory.free()
            passes.weights.rows, passes.weights.outside = self._rows  # masks do not change them
            run = _px if self.criterion == "px" else _joint
            found, ranges = run(passes, self.data, progress)
            self._rows = (passes.weights.rows, passes.weights.outside)
        if passes.structure is not None and not passes.structure.cancels:
            self._structure = passes.structure  # fewer weights will not make the data cancel again
        provenance = {"pxfast": __version__, "criterion": self.criterion}
        provenance["batchnorm"] = self.options.get("batchnorm", "running")
        if self._memory is not None:
            self._memory.lend(passes.weights.saliency)
        return _assembled(passes.weights, ranges, self._exact, provenance | found)

    def _forget_if_changed(self, model: nn.Module) -> None:
        """What was found for other weights does not count."""
        version = _version(model)
        if version is None or version != self._version:
            self._exact, self._pathless, self._version = set(), set(), version


def _version(model: nn.Module) -> int | None:
    """A number that grows with every change of a parameter; None for parameters made in
    inference_mode, whose changes torch does not count."""
    parameters = list(model.parameters())
    if any(parameter.is_inference() for parameter in parameters):
        return None
    return sum(parameter._version for parameter in parameters)


Ranges = dict[str, tuple[float, float]]  # the smallest and the largest score by weight


def _px(passes: Passes, data: Any, progress: bool | None) -> tuple[dict[str, Any], Ranges]:
    """The data pass (unless the data cancels), then the kernel pass."""
    first, stream = peeked(batches(progress_bar(data, "score", progress)))
    if brings_masks(first):
        return _over_data(passes, data, passes.kernel_of_each, stream, None)
    if passes.data_cancels(first):
        sums: list[PathSum] | None = None
        how = "skipped: every output has the same path activation, so the data cancels from S/R"
    else:
        sums, how = passes.activation(stream), "run"
    log2 = passes.kernel(first, sums)
    ranges = _ranges(passes.weights)
    again = [] if sums is None else [lambda: passes.kernel(first, _signs(sums))]
    _check_underflow(passes, ranges, lambda: passes.kernel(first, None), *again)
    found = {
        "samples": passes.samples or _sample_count(data),
        "data_pass": how,
        "log2_R": log2,
    }
    return found, ranges


def _joint(passes: Passes, data: Any, progress: bool | None) -> tuple[dict[str, Any], Ranges]:
    """One pass over the data, forward and backward."""
    first, stream = peeked(batches(progress_bar(data, "score", progress)))
    open_gates = None if brings_masks(first) else lambda: passes.kernel(first, None)
    return _over_data(passes, data, passes.joint, stream, open_gates)


def _over_data(
    passes: Passes,
    data: Any,
    run: Callable[[Iterable[Batch]], float],
    stream: Iterable[Batch],
    open_gates: Callable[[], Any] | None,
) -> tuple[dict[str, Any], Ranges]:
    """A pass whose backward needs the data; one with ``open_gates`` that does not may find that no
    path is there."""
    log2 = run(stream)
    samples = passes.samples
    ranges = _ranges(passes.weights)
    _check_underflow(passes, ranges, open_gates, lambda: run(batches(data)))
    return {"samples": samples, "data_pass": "run", "log2_R": log2}, ranges


def _ranges(weights: Weights) -> Ranges:
    """What all checks of scores go by, in one read of them; NaN where there is one."""
    found = {}
    for name, scores in weights.saliency.items():
        ends = torch.aminmax(scores) if scores.numel() else (0.0, 0.0)
        found[name] = (float(ends[0]), float(ends[1]))
    return found


def _check_underflow(
    passes: Passes,
    ranges: Ranges,
    open_gates: Callable[[], Any] | None,
    *again: Callable[[], Any],
) -> None:
    """Refuse a layer whose scores are all 0 although paths run through it: its total left the range
    of the dtype.

    Only where a layer that keeps weights has nothing but zeros is the pass repeated, with every
    weight that is not 0 counted as 1, to see whether there are paths at all (an empty residual
    branch has none). A pass over the data comes after one that opens every gate: where that finds
    no path, there is none, and none under masks that keep less.
    """
    weights = passes.weights
    empty = [
        name
        for name in weights.reached & weights.saliency.keys()
        if ranges[name][1] == 0
        and name not in passes.pathless
        and bool(weights.kept(name).count_nonzero())
    ]
    if not empty:
        return
    kept = dict(weights.saliency), dict(weights.used), set(weights.reached)
    weights.purpose = "existence"
    lost = empty
    for run in filter(None, (open_gates, *again)):
        weights.forget()
        run()
        found = weights.saliency
        there = [name for name in lost if name in found and bool(found[name].amax() > 0)]
        if run is open_gates:
            passes.pathless.update(set(lost) - set(there))
        lost = there
        if not lost:
            break
    weights.purpose = "scores"
    weights.saliency, weights.used, weights.reached = kept[0], kept[1], kept[2]
    if lost:
        raise RangeError(
            f"the scores of {', '.join(lost)} underflow: all of them are below the range of "
            f"{passes.dtype} next to the others. Rescale the layer, or score the model in float64 "
            "(model.double())."
        )


def _assembled(
    weights: Weights, ranges: Ranges, exact: set[str], provenance: dict[str, Any]
) -> Scores:
    """Scores in parameter order, what was left out, and what rounded to 0: looked for unless all
    scores are positive or the weight is among the ``exact``, to which this adds."""
    model = weights.model
    names = [name for name, _ in named_weights(model)]
    scored = [
        name
        for name in dict.fromkeys(names)
        if name in weights.reached and name in weights.saliency
    ]
    known = set(weights.saliency) | {name for name in layer_weights(model) if weights.scored(name)}
    unused = [name for name in dict.fromkeys(names) if name in known and name not in scored]
    if not scored:
        raise PxfastError("there are no prunable weights: the output uses none of them")
    if unused:
        warnings.warn(
            f"the output never uses these weights, so they get no scores: {', '.join(unused)}",
            stacklevel=4,
        )
    if weights.dead:
        warnings.warn(
            "no path sum opens these gates (of a query that is only learned, or pruned away), so "
            f"the weights that shape them score 0: {', '.join(dict.fromkeys(weights.dead))}",
            stacklevel=4,
        )
    doubtful = [name for name in scored if not (name in exact or ranges[name][0] > 0)]
    counts = {name: _underflowed(weights, name) for name in doubtful}
    lost = {name: count for name, count in counts.items() if count}
    exact.update(counts.keys() - lost.keys())
    dead = list(dict.fromkeys(weights.dead))
    provenance |= {"underflowed": lost, "unused": unused, "dead_gates": dead}
    finite = all(map(math.isfinite, (end for name in scored for end in ranges[name])))
    make = Scores.of_finite if finite else Scores
    return make({name: weights.saliency[name] for name in scored}, provenance)


def _underflowed(weights: Weights, name: str) -> int:
    """How many kept weights are not 0 although their squares are."""
    return underflowed(weights.theta(name), weights.used[name].mask, weights.dtype)


def _sample_count(data: Any) -> int | None:
    """Number of samples where it is known without reading the data."""
    dataset = getattr(data, "dataset", None)
    if dataset is not None and hasattr(dataset, "__len__"):
        return len(dataset)
    if isinstance(data, (Tensor, tuple, list, Mapping)):
        return sum(batch.size for batch in batches(data))
    return None


def _signs(sums: list[PathSum]) -> list[PathSum]:
    return [PathSum((s.mantissa > 0).to(s.mantissa.dtype)) for s in sums]
