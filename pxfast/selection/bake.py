"""Masks made permanent: plain weights with zeros in them."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from pxfast.selection.weights import MaskParametrization, places, pruning_hook

Model = TypeVar("Model", bound=nn.Module)
_PER_CLASS = ("__dict__", "__weakref__")


def bake(model: Model, *, in_place: bool = False) -> Model:
    """Makes the masks of a model permanent: its weights are plain parameters with zeros in them.

    Undoes what `Masks.apply_` and torch.nn.utils.prune did to the modules and keeps the zeros:
    ``weight_orig`` and ``weight_mask`` become ``weight`` again. That is what exporters, other
    libraries and ``save_pretrained`` expect. Weights without a mask stay as they are; where a
    mask follows another parametrization, such as weight norm, both are computed once and left off.

    Args:
        model: The model.
        in_place: Change the model itself. Otherwise it stays as it is and can go on training;
            ``copy.deepcopy`` refuses a model that torch.nn.utils.prune has masked.

    Returns:
        A copy, or the model.

    Example:
        >>> import pxfast, torch
        >>> layer = nn.Linear(2, 2)
        >>> masks = pxfast.Masks({"weight": torch.tensor([[1, 0], [0, 1]])})
        >>> sorted(masks.apply_(layer).state_dict())
        ['bias', 'weight_mask', 'weight_orig']
        >>> sorted(bake(layer).state_dict()), int((bake(layer).weight == 0).sum())
        (['bias', 'weight'], 2)
    """
    if not in_place:
        model = _copy(model)
    for place in list(places(model)):
        module, attribute = place.module, place.attribute
        if pruning_hook(module, attribute) is not None:
            prune.remove(module, attribute)
        elif parametrize.is_parametrized(module, attribute):
            steps = module.parametrizations[attribute]  # type: ignore[index]
            if any(isinstance(step, MaskParametrization) for step in steps):  # type: ignore[union-attr]
                parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
    return model


def _copy(model: Model) -> Model:
    """A deep copy; the tensors that hooks have computed are copied as plain values."""
    shown = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    copied = copy.deepcopy(model, {id(value): value.detach().clone() for value in shown})
    for module in copied.modules():
        if parametrize.is_parametrized(module):
            # torch makes a class for each parametrized module, which a deep copy shares: to remove
            # a parametrization of the one would break the other.
            own = type(module)
            content = {name: value for name, value in vars(own).items() if name not in _PER_CLASS}
            module.__class__ = type(own.__name__, own.__bases__, content)  # type: ignore[assignment]
    return copied
