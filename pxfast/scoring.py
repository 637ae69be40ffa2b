"""score(): Path eXclusion scores of a model's weights, without copying or changing the model."""

from __future__ import annotations

import contextlib
import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pxfast._version import __version__
from pxfast.batches import Batch, batches, is_finite
from pxfast.errors import MaskError, PxfastError, RangeError
from pxfast.paths.names import named_weights
from pxfast.paths.outputs import Select
from pxfast.paths.passes import Passes
from pxfast.paths.pathsum import PathSum
from pxfast.paths.weights import Weights
from pxfast.rng import preserved_rng
from pxfast.selection.scores import Scores
from pxfast.unwrap import unwrapped

Choice = str | nn.Module | Iterable[str | nn.Module] | None
CRITERIA = ("px", "px-joint")
_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


def score(
    model: nn.Module,
    data: Any,
    *,
    criterion: Literal["px", "px-joint"] = "px",
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
            keeps weights and data inside one sum over paths (section 3).
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
        max_memory: bytes of activations to stay under, by splitting batches (not with
            ``batchnorm="data"``).
        progress: show a progress bar over the batches. Default: only on a terminal.

    Returns:
        Scores: S/R per weight, float32 (float64 for float64 models), non-negative, in the model's
            parameter order;
        exactly 0 where masked. ``scores.provenance`` says how they were made.

    Raises:
        NoRuleError: the model uses an operation without a rule; the message shows how to add one.
        DataError: the data is empty, not finite, or the model cannot run on it.
        MaskError: masks do not fit the model.
        RangeError: no path reaches the output, or path sums left the range.

    Source: Iurada, Ciccone, Tommasi, CVPR 2024, arXiv 2406.01820, equations of section 3; px-joint
    is pxfast's own.

    Example:
        >>> import torch, pxfast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8,
        2))
        >>> scores = pxfast.score(model, torch.randn(16, 4))
        >>> [round(total, 4) for total in scores.totals().values()]  # a layer that cuts all paths
        holds them all [1.0, 1.0]
    """
    model = unwrapped(model)
    _refuse_scripted(model)
    _check_options(criterion, batchnorm, dtype, max_memory)
    scored = chosen(model, include, exclude)
    path_dtype = check_weights(model)
    masks = {} if masks is None else masks
    _check_masks(model, masks)
    weights = Weights(model, masks, scored, path_dtype)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    passes = Passes(model, weights, device, path_dtype, batchnorm, output, dtype, max_memory)
    with evaluation(model), preserved_rng(data), torch.inference_mode(False):
        run = _px if criterion == "px" else _joint
        provenance = {
            "pxfast": __version__,
            "criterion": criterion,
            "batchnorm": batchnorm,
        }
        provenance |= run(passes, data, progress)
    return _assembled(model, weights, provenance)


def _px(passes: Passes, data: Any, progress: bool | None) -> dict[str, Any]:
    """The data pass (unless the data cancels), then the kernel pass."""
    first, stream = _peek(batches(_bar(data, progress)))
    if _some_layer_unmasked(passes.weights) and passes.data_cancels(first):
        sums: list[PathSum] | None = None
        how = "skipped: every output has the same path activation, so the data cancels from S/R"
    else:
        sums, how = passes.activation(stream), "run"
    log2 = passes.kernel(first, sums)
    _check_underflow(passes, lambda: passes.kernel(first, None if sums is None else _signs(sums)))
    return {
        "samples": passes.samples or _sample_count(data),
        "data_pass": how,
        "log2_R": log2,
    }


def _some_layer_unmasked(weights: Weights) -> bool:
    """Whether the data can cancel at all: the last layer would have to keep every weight."""
    return any(weights.keeps_all(name) for name in layer_weights(weights.model))


def _joint(passes: Passes, data: Any, progress: bool | None) -> dict[str, Any]:
    """One pass over the data, forward and backward."""
    log2 = passes.joint(batches(_bar(data, progress)))
    samples = passes.samples
    _check_underflow(passes, lambda: passes.joint(batches(data)))
    return {"samples": samples, "data_pass": "run", "log2_R": log2}


def _check_underflow(passes: Passes, again: Callable[[], Any]) -> None:
    """Refuse a layer whose scores are all 0 although paths run through it: its total left the range
    of the dtype.

    Only where a layer that keeps weights has nothing but zeros is the pass repeated, with every
    weight that is not 0 counted as 1, to see whether there are paths at all (an empty residual
    branch has none).
    """
    weights = passes.weights
    empty = [
        name
        for name in weights.reached & weights.saliency.keys()
        if not bool(weights.saliency[name].any()) and bool(weights.alive(name).any())
    ]
    if not empty:
        return
    kept = dict(weights.saliency), dict(weights.used), set(weights.reached)
    weights.forget()
    weights.purpose = "existence"
    again()
    lost = [name for name in empty if bool(weights.saliency[name].any())]
    weights.purpose = "scores"
    weights.saliency, weights.used, weights.reached = kept[0], kept[1], kept[2]
    if lost:
        raise RangeError(
            f"the scores of {', '.join(lost)} underflow: all of them are below the range of "
            f"{passes.dtype} next to the others. Rescale the layer, or score the model in float64 "
            "(model.double())."
        )


def _assembled(model: nn.Module, weights: Weights, provenance: dict[str, Any]) -> Scores:
    """Scores in parameter order, what was left out, and what rounded to 0."""
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
            stacklevel=3,
        )
    underflowed = {}
    for name in scored:
        count = int(
            ((weights.used[name].theta.to(weights.dtype).square() == 0) & weights.alive(name)).sum()
        )
        if count:
            underflowed[name] = count
    provenance |= {"underflowed": underflowed, "unused": unused}
    return Scores({name: weights.saliency[name] for name in scored}, provenance)


# ---- the model -----------------------------------------------------------------------------------


def _refuse_scripted(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: a scripted or traced module cannot be scored, since its operations cannot "
            "be followed; give the original nn.Module"
        )


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode again afterwards, also when an exception
    passes."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_weights(model: nn.Module) -> torch.dtype:
    """Refuse NaN and infinity by name; returns the dtype of path sums, float32 or float64.

    Raises:
        PxfastError: a parameter or buffer is not finite.
    """
    dtype = torch.float32
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        if tensor.dtype is torch.float64:
            dtype = torch.float64
        if not is_finite(tensor):
            raise PxfastError(
                f"{name} holds NaN or infinity; scores of this model would mean nothing"
            )
    return dtype


def layer_weights(model: nn.Module) -> list[str]:
    """Names of the weights of linear and convolution layers, in parameter order."""
    owners = {name for name, module in model.named_modules() if isinstance(module, _LAYERS)}
    names = dict.fromkeys(name for name, _ in named_weights(model))
    return [name for name in names if name.rpartition(".")[0] in owners and name.endswith("weight")]


def chosen(model: nn.Module, include: Choice, exclude: Choice) -> Callable[[str], bool]:
    """Which weights get scores: those that ``include`` names (default: all) and ``exclude`` does
    not.

    Raises:
        PxfastError: a name, glob or module that matches nothing.
    """
    names = {name for name, _ in named_weights(model)}
    included = None if include is None else _matching(model, names, include, "include")
    excluded = _matching(model, names, exclude, "exclude")
    return lambda name: (included is None or name in included) and name not in excluded


def _matching(model: nn.Module, names: set[str], choice: Choice, option: str) -> set[str]:
    if choice is None:
        return set()
    choices: list[str | nn.Module] = (
        [choice] if isinstance(choice, (str, nn.Module)) else list(choice)
    )
    found: set[str] = set()
    for pattern in choices:
        if isinstance(pattern, nn.Module):
            own = {id(parameter) for parameter in pattern.parameters()}
            matches = {name for name, parameter in named_weights(model) if id(parameter) in own}
        else:
            matches = {
                n for n in names if fnmatch.fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")
            }
        if not matches:
            what = type(pattern).__name__ if isinstance(pattern, nn.Module) else repr(pattern)
            examples = ", ".join(sorted(names)[:3])
            raise PxfastError(f"{option}: {what} matches no weight of the model, as in {examples}")
        found |= matches
    return found


# ---- options and data ----------------------------------------------------------------------------


def _check_options(
    criterion: str, batchnorm: str, dtype: torch.dtype | None, max_memory: int | None
) -> None:
    if criterion not in CRITERIA:
        raise PxfastError(f"criterion: expected one of {', '.join(CRITERIA)}, got {criterion!r}")
    if batchnorm not in ("running", "data"):
        raise PxfastError(f'batchnorm: expected "running" or "data", got {batchnorm!r}')
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise PxfastError(
            f"dtype: expected torch.bfloat16 or torch.float16 (autocast) or None, got {dtype}"
        )
    if max_memory is not None and max_memory <= 0:
        raise PxfastError(f"max_memory: expected a positive number of bytes, got {max_memory}")


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    names = {name for name, _ in named_weights(model)}
    unknown = [name for name in masks if name not in names]
    if unknown:
        raise MaskError(
            f"masks: {', '.join(map(repr, unknown[:3]))} is not a weight of the model; its weights "
            f"are named like {', '.join(sorted(names)[:3])}"
        )


def _peek(stream: Iterator[Batch]) -> tuple[Batch, Iterator[Batch]]:
    """The first batch, and all of them."""
    first = next(stream)

    def everything() -> Iterator[Batch]:
        yield first
        yield from stream

    return first, everything()


def _bar(data: Any, progress: bool | None) -> Any:
    """A progress bar over the batches, if there are several."""
    if isinstance(data, (Tensor, tuple, Mapping, str, bytes)) or not hasattr(data, "__iter__"):
        return data
    return tqdm(
        data,
        desc="score",
        unit="batch",
        leave=False,
        disable=None if progress is None else not progress,
    )


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
