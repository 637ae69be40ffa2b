"""Which weights criteria score, what they hold, and their masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pxfast.errors import MaskError, PxfastError
from pxfast.paths.names import closest, named_weights
from pxfast.preparation import Choice, chosen, layer_weights
from pxfast.selection.masks import as_masks
from pxfast.selection.weights import check_fit, find_weight, own_masks, stored_parameter


def prunable_weights(model: nn.Module, include: Choice = None, exclude: Choice = None) -> list[str]:
    """Names of the weights that criteria score, in the model's parameter order.

    Weights of linear and convolution layers and the fused input projection of
    nn.MultiheadAttention, as far as they are included and not excluded.

    Raises:
        PxfastError: If there are none, or a choice matches no weight.
    """
    wanted = chosen(model, include, exclude)
    known = set(layer_weights(model))
    for prefix, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            known |= {f"{prefix}.{name}".removeprefix(".") for name in names}
    names = dict.fromkeys(name for name, _ in named_weights(model))
    found = [name for name in names if name in known and wanted(name)]
    if not found:
        raise PxfastError(
            "there are no prunable weights: no weight of a linear or convolution layer that "
            "include= and exclude= leave"
        )
    return found


def weight_values(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """θ by name as the forward sees it, apart from masks of torch.nn.utils.prune.

    Raises:
        PxfastError: If a hook computes a weight, so that it has no place of its own.
    """
    found = {}
    for name in names:
        module, attribute = find_weight(model, name)
        if parametrize.is_parametrized(module, attribute):
            with torch.no_grad():
                found[name] = getattr(module, attribute).detach()
            continue
        parameter = stored_parameter(module, attribute)
        if parameter is None:
            raise PxfastError(
                f"'{name}' is no parameter: a hook computes it. For weight norm and spectral norm "
                f"use torch.nn.utils.parametrizations, or leave it out with exclude="
            )
        found[name] = parameter.detach()
    return found


def combined_masks(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The model's own masks and those given, together: bool by name, on the weights' devices.

    Raises:
        MaskError: If a mask names no weight or has another shape.
    """
    given = as_masks({} if masks is None else masks)
    parameters = dict(named_weights(model))
    if unknown := [name for name in given if name not in parameters]:
        raise MaskError(
            f"masks: {', '.join(map(repr, unknown[:3]))} is not a weight of the model; its weights "
            f"are named like {closest(str(unknown[0]), parameters)}"
        )
    check_fit(model, given)
    found = own_masks(model)
    for name, mask in given.items():
        mask = mask.to(parameters[name].device)
        found[name] = found[name] & mask if name in found else mask
    return found


def stored_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The name of the parameter behind each weight that no parametrization computes."""
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    places = {name: find_weight(model, name) for name in names}
    return {
        name: parameters[id(stored_parameter(*place))]
        for name, place in places.items()
        if not parametrize.is_parametrized(*place)
    }
