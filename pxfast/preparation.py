"""What score() and ntk_trace_bound() do before the passes: checks, names, evaluation mode."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pxfast.batches import is_finite
from pxfast.errors import MaskError, PxfastError
from pxfast.offload import Offloaded, main_device
from pxfast.paths.names import closest, named_weights
from pxfast.paths.outputs import Select
from pxfast.paths.passes import Passes
from pxfast.paths.weights import Weights
from pxfast.rng import preserved_rng
from pxfast.unwrap import unwrapped

Choice = str | nn.Module | Iterable[str | nn.Module] | None
_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


@contextlib.contextmanager
def prepared(
    model: nn.Module,
    data: Any,
    *,
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: Literal["running", "data"] = "running",
    include: Choice = None,
    exclude: Choice = None,
    output: Select = None,
    dtype: torch.dtype | None = None,
    max_memory: int | None = None,
) -> Iterator[Passes]:
    """The passes over a model, all arguments checked, in evaluation mode and with the random
    number generators kept. The arguments are those of `pxfast.score`.
    """
    model = unwrapped(model)
    refuse_scripted(model)
    _check_options(batchnorm, dtype, max_memory)
    scored = chosen(model, include, exclude)
    offloaded = Offloaded(model)
    path_dtype = check_weights(model, offloaded)
    masks = {} if masks is None else masks
    _check_masks(model, masks)
    weights = Weights(model, masks, scored, path_dtype)
    device = main_device(model, offloaded)
    with evaluation(model), preserved_rng(data), torch.inference_mode(False):
        try:
            yield Passes(model, weights, device, path_dtype, batchnorm, output, dtype, max_memory)
        finally:
            offloaded.put_back()


def refuse_scripted(model: nn.Module) -> None:
    """Raise TypeError for a ScriptModule: its operations cannot be followed."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: a scripted or traced module cannot be scored, since its operations cannot "
            "be followed; give the original nn.Module"
        )


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode and plain tensor attributes again afterwards,
    also when an exception passes."""
    modes = [(module, module.training) for module in model.modules()]
    attributes = [(module, _plain_tensors(module)) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, tensors in attributes:  # hooks set some (torch.nn.utils.prune), forwards others
            for name in _plain_tensors(module).keys() - tensors.keys():
                del module.__dict__[name]
            module.__dict__.update(tensors)


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Attributes that are tensors, but neither parameters nor buffers."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}


def check_weights(model: nn.Module, offloaded: Offloaded) -> torch.dtype:
    """Refuse NaN and infinity by name; returns the dtype of path sums, float32 or float64.

    A buffer may hold infinity, unless it is a norm's statistic: masks and bounds do.

    Raises:
        PxfastError: a parameter or buffer is not finite.
    """
    dtype = torch.float32
    bounds = {name for name, _ in model.named_buffers() if "running_" not in name}
    stored = ((name, offloaded.load(name)) for name in offloaded)
    for name, tensor in chain(model.named_parameters(), model.named_buffers(), stored):
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        if tensor.dtype is torch.float64:
            dtype = torch.float64
        if not is_finite(tensor) and not (name in bounds and not bool(tensor.isnan().any())):
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
    if not isinstance(choice, (str, nn.Module, Iterable)):
        raise PxfastError(
            f"{option}: expected names, globs or modules, or a list of them, got {choice!r}"
        )
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
            raise PxfastError(
                f"{option}: {what} matches no weight of the model; its weights are named like "
                f"{closest(what, names)}"
            )
        found |= matches
    return found


def _check_options(batchnorm: str, dtype: torch.dtype | None, max_memory: int | None) -> None:
    if batchnorm not in ("running", "data"):
        raise PxfastError(f'batchnorm: expected "running" or "data", got {batchnorm!r}')
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise PxfastError(
            f"dtype: expected torch.bfloat16 or torch.float16 (autocast) or None, got {dtype}"
        )
    number = isinstance(max_memory, (int, float)) and max_memory > 0 and max_memory is not True
    if max_memory is not None and not number:
        raise PxfastError(
            f"max_memory: expected a positive number of bytes, such as 8 * 2**30, got "
            f"{max_memory!r}"
        )


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    if not isinstance(masks, Mapping):
        raise MaskError(
            "masks: expected a mapping of weight names to tensors of 0 and 1, as pxfast.Masks is "
            f"one, got {type(masks).__name__}"
        )
    names = {name for name, _ in named_weights(model)}
    unknown = [name for name in masks if name not in names]
    if unknown:
        raise MaskError(
            f"masks: {', '.join(map(repr, unknown[:3]))} is not a weight of the model; its weights "
            f"are named like {closest(str(unknown[0]), names)}"
        )
