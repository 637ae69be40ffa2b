"""Names of weights: the module attribute, wherever a parametrisation or torch.nn.utils.prune keeps
the tensor."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Container, Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize


def named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters under their canonical names, in the model's parameter order; tied parameters
    once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules(remove_duplicate=True):
        for attribute, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield canonical_name(prefix, module, attribute), parameter


def canonical_name(prefix: str, module: nn.Module, attribute: str) -> str:
    """``layer.weight`` for ``layer.weight``, ``layer.weight_orig`` and
    ``layer.parametrizations.weight.original``."""
    if isinstance(module, parametrize.ParametrizationList):
        owner, _, name = prefix.rpartition("parametrizations.")
        return owner + name
    name = attribute.removesuffix("_orig")
    computed = f"{name}_mask" in module._buffers or f"{name}_u" in module._buffers
    if name != attribute and computed:  # by torch.nn.utils.prune, by its old spectral_norm
        attribute = name
    elif attribute.endswith(("_v", "_g")) and f"{attribute[:-2]}_v" in module._parameters:
        attribute = attribute[:-2] if f"{attribute[:-2]}_g" in module._parameters else attribute
    return f"{prefix}.{attribute}" if prefix else attribute


def closest(name: str, names: Collection[str]) -> str:
    """The three names that are most like one, for error messages."""
    weights = [other for other in names if other.endswith("weight")]
    return ", ".join(difflib.get_close_matches(name, weights or names, 3, 0.0))


def running_module(model: nn.Module) -> str:
    """Name and class of the innermost module of ``model`` whose forward is on the Python stack."""
    module = innermost_module({id(module) for module in model.modules()})
    return "the model's forward" if module is None else described(model, module)


def innermost_module(known: Container[int]) -> nn.Module | None:
    """The innermost module on the Python stack whose id is known."""
    frame = sys._getframe(1)  # not this one: it would hold itself, and all frames below it
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in known:
                return module
        frame = frame.f_back
    return None


def described(model: nn.Module, module: nn.Module) -> str:
    """Name and class of a module of the model."""
    names = (name for name, other in model.named_modules() if other is module)
    name = next(names, "") or "the model's own forward"
    return f"{name} ({type(module).__name__})"


def attribute_of(model: nn.Module, name: str) -> Tensor:
    """The tensor that ``name`` stands for now, as the module's attribute gives it."""
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)
