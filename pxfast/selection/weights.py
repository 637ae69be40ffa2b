"""Where a model keeps the weight of a name, which mask it carries, and how it gets another.

A name is the module's attribute, ``layer1.0.conv1.weight``, also where torch.nn.utils.prune keeps
the numbers in ``weight_orig`` or a parametrization in ``parametrizations.weight.original``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from pxfast.errors import MaskError
from pxfast.unwrap import unwrapped

LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


class Place(NamedTuple):
    """A module's weight and the parameter that stores its numbers."""

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter


class MaskParametrization(nn.Module):
    """Multiplies a weight by a mask, as the last step of a parametrized weight.

    Args:
        mask: Bool tensor of the weight's shape.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight with the removed entries set to 0."""
        return weight * self.mask


def pruning_hook(module: nn.Module, attribute: str) -> prune.BasePruningMethod | None:
    """Returns the hook by which torch.nn.utils.prune masks a module's weight, if it does."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == attribute:
            return hook
    return None


def stored_parameter(module: nn.Module, attribute: str) -> nn.Parameter | None:
    """Returns the parameter behind a weight (the first one, if it is computed from several)."""
    if parametrize.is_parametrized(module, attribute):
        return next(iter(_chain(module, attribute)._parameters.values()))
    if pruning_hook(module, attribute) is not None:
        return module._parameters[f"{attribute}_orig"]
    return module._parameters.get(attribute)


def places(model: nn.Module) -> Iterator[Place]:
    """Yields every parameter of a model under its module attribute; a tied one at each place."""
    for prefix, module in unwrapped(model).named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        attributes = [_visible(module, stored) for stored in module._parameters]
        if parametrize.is_parametrized(module):
            attributes.extend(cast(nn.ModuleDict, module.parametrizations))
        for attribute in attributes:
            parameter = stored_parameter(module, attribute)
            if parameter is not None:
                name = f"{prefix}.{attribute}" if prefix else attribute
                yield Place(name, module, attribute, parameter)


def find_weight(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Finds the module and the attribute of a weight.

    Args:
        model: Any model, also wrapped by torch.compile or DDP.
        name: Name of the module's attribute, ``layer.weight``.

    Returns:
        The module and the attribute's name: ``getattr(module, attribute)`` is the weight that the
        forward uses.

    Raises:
        MaskError: If the model has no weight of that name.
    """
    prefix, _, attribute = name.rpartition(".")
    try:
        module = unwrapped(model).get_submodule(prefix)
    except AttributeError:
        module = None
    if module is not None and attribute == _visible(module, attribute):
        # A parametrized weight is not read here: reading it may move its state.
        if parametrize.is_parametrized(module, attribute):
            return module, attribute
        if isinstance(getattr(module, attribute, None), Tensor):
            return module, attribute
    known = [place.name for place in places(model)]
    close = difflib.get_close_matches(name, known, n=3) or known[:8]
    raise MaskError(f"the model has no weight '{name}'; it has for example {', '.join(close)}")


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], what: str = "mask") -> None:
    """Raises a MaskError unless every tensor names a weight of the model and has its shape."""
    for name, tensor in tensors.items():
        shape = weight_value(*find_weight(model, name)).shape
        if tensor.shape != shape:
            raise MaskError(
                f"the {what} of '{name}' has shape {list(tensor.shape)}, the weight has "
                f"{list(shape)}: are the {what}s of another model?"
            )


def weight_value(module: nn.Module, attribute: str) -> Tensor:
    """Returns a weight without gradient; a parametrized one is computed in eval mode, for its
    state."""
    if not parametrize.is_parametrized(module, attribute):
        return getattr(module, attribute).detach()
    chain = _chain(module, attribute)
    modes = [(step, step.training) for step in chain.modules()]
    try:
        with torch.no_grad():
            return chain.eval()()
    finally:
        for step, training in modes:
            step.training = training


def own_masks(model: nn.Module) -> dict[str, Tensor]:
    """Returns the masks that a model's weights carry, by torch.nn.utils.prune or `apply_masks`.

    A shared weight counts once, under its first name.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for place in places(model):
        if id(place.parameter) in seen:
            continue
        seen.add(id(place.parameter))
        if parametrize.is_parametrized(place.module, place.attribute):
            chain = _chain(place.module, place.attribute)
            steps = [step.mask for step in chain if isinstance(step, MaskParametrization)]
            if steps:
                found[place.name] = torch.stack(steps).all(0)
        elif pruning_hook(place.module, place.attribute) is not None:
            found[place.name] = getattr(place.module, f"{place.attribute}_mask") != 0
    return found


def zero_masks(model: nn.Module) -> dict[str, Tensor]:
    """Returns where the weights of linear and convolution layers are not 0, a shared weight under
    its first name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for place in places(model):
        weight = place.attribute == "weight" and isinstance(place.module, LAYERS)
        packed = place.attribute == "in_proj_weight"
        if (weight or packed) and id(place.parameter) not in seen:
            seen.add(id(place.parameter))
            found[place.name] = weight_value(place.module, place.attribute) != 0
    return found


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor], *, in_place: bool) -> None:
    """Applies bool masks to a model's weights, all or none.

    A parameter that several modules share gets its mask at each of them.

    Raises:
        MaskError: If a mask does not fit, two masks meet in one parameter, or a weight cannot be
            masked in this way. The model is then unchanged.
    """
    plan = placed(model, masks)
    for place, _ in plan:
        if place.parameter.is_meta and hasattr(place.module, "_hf_hook"):
            raise MaskError(
                f"'{place.name}' is offloaded by accelerate, so that it is not here to be masked: "
                f"pxfast.integrations.accelerate.apply_masks(model, masks) sets the zeros where it "
                f"is stored"
            )
    if in_place:
        for place, _ in plan:
            if parametrize.is_parametrized(place.module, place.attribute):
                raise MaskError(
                    f"'{place.name}' is computed by a parametrization and cannot be zeroed in "
                    f"place: use in_place=False, or call torch.nn.utils.parametrize."
                    f"remove_parametrizations(module, '{place.attribute}') first"
                )
    without_hooks = never_called(model)
    for place, mask in plan:
        mask = mask.to(place.parameter.device)
        if in_place:
            _zero(place, mask)
        elif (
            parametrize.is_parametrized(place.module, place.attribute)
            or place.module in without_hooks
        ):
            step = MaskParametrization(mask.clone())
            parametrize.register_parametrization(place.module, place.attribute, step)
        else:
            prune.custom_from_mask(place.module, place.attribute, mask)


def placed(
    model: nn.Module, tensors: Mapping[str, Tensor], what: str = "mask"
) -> list[tuple[Place, Tensor]]:
    """Returns each place that a mask, or other tensor of a weight's shape, reaches, ties included.

    Raises:
        MaskError: If one does not fit, two different ones meet in one parameter, or a weight is no
            parameter.
    """
    check_fit(model, tensors, what)
    shared: dict[int, list[Place]] = {}
    for place in places(model):
        shared.setdefault(id(place.parameter), []).append(place)
    claimed: dict[int, str] = {}
    plan: list[tuple[Place, Tensor]] = []
    for name, tensor in tensors.items():
        parameter = stored_parameter(*find_weight(model, name))
        if parameter is None:
            raise MaskError(
                f"'{name}' is no parameter: a hook or the module computes it. For weight norm and "
                f"spectral norm use torch.nn.utils.parametrizations instead of the older hooks"
            )
        other = claimed.setdefault(id(parameter), name)
        if other == name:
            plan.extend((place, tensor) for place in shared[id(parameter)])
        elif not torch.equal(tensors[other].cpu(), tensor.cpu()):
            raise MaskError(
                f"'{other}' and '{name}' are one shared weight but have two different {what}s: "
                f"keep one of them"
            )
    return plan


def never_called(model: nn.Module) -> set[nn.Module]:
    """Returns modules whose weights are read by their parent, which never calls them: attention
    does so with its output projection, whose hooks therefore never run."""
    return {
        module.out_proj
        for module in unwrapped(model).modules()
        if isinstance(module, nn.MultiheadAttention)
    }


def _visible(module: nn.Module, stored: str) -> str:
    """Returns the attribute under which the forward sees a parameter: weight for weight_orig."""
    attribute = stored.removesuffix("_orig")
    return attribute if pruning_hook(module, attribute) is not None else stored


def _chain(module: nn.Module, attribute: str) -> parametrize.ParametrizationList:
    """Returns the parametrizations of a weight."""
    return cast(nn.ModuleDict, module.parametrizations)[attribute]  # type: ignore[return-value]


def _zero(place: Place, mask: Tensor) -> None:
    """Sets the removed entries of a weight to 0, also of the one that prune shows in its place."""
    with torch.no_grad():
        place.parameter.masked_fill_(~mask, 0)
        hook = pruning_hook(place.module, place.attribute)
        if hook is not None:
            setattr(place.module, place.attribute, hook.apply_mask(place.module))
