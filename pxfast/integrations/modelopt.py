"""NVIDIA ModelOpt: masks in its sparse modules, for its own training and export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from pxfast._optional import require
from pxfast.errors import MaskError
from pxfast.selection.masks import Masks, as_masks
from pxfast.selection.weights import check_fit

require("modelopt.torch.sparsity", "pxfast.integrations.modelopt", "pxfast[modelopt]")

from modelopt.torch.opt.conversion import apply_mode  # noqa: E402
from modelopt.torch.sparsity.weight_sparsity.mode import SparsityModeRegistry  # noqa: E402
from modelopt.torch.sparsity.weight_sparsity.module import SparseModule  # noqa: E402

Model = TypeVar("Model", bound=nn.Module)


def set_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Puts masks into ModelOpt's sparse modules.

    The model is brought into ModelOpt's mode "sparse_magnitude" if it is not in it yet, which
    searches for nothing: the masks are what is given here. From then on every forward multiplies
    the weights by them, and ModelOpt's tools go on from there: ``modelopt.torch.opt.save`` and
    ``restore``, quantisation, ``modelopt.torch.sparsity.export``. pxfast scores the model under
    these masks, too.

    Args:
        model: A plain model, or one in a sparse mode of ModelOpt; changed.
        masks: Masks by weight name, of nn.Linear and nn.Conv2d layers. Layers without one keep all
            their weights.

    Returns:
        The model.

    Raises:
        MaskError: If masks do not fit, or a weight is in a layer that ModelOpt cannot mask; the
            model is then unchanged.
    """
    wanted = as_masks(masks)
    check_fit(model, wanted)
    _check_layers(model, wanted)
    if not any(isinstance(module, SparseModule) for module in model.modules()):
        rules = {"*": None, **{name.rpartition(".")[0]: {} for name in wanted}}
        config = {"nn.Linear": rules, "nn.Conv2d": rules}
        apply_mode(model, [("sparse_magnitude", config)], registry=SparsityModeRegistry)
    for name, module in _sparse_modules(model).items():
        module.set_mask(wanted.get(name))  # type: ignore[arg-type]
    return model


def masks_of(model: nn.Module) -> Masks:
    """Reads the masks that ModelOpt's sparse modules hold; layers that keep everything have none.

    Raises:
        MaskError: If there are none.
    """
    held = {name: module._weight_mask for name, module in _sparse_modules(model).items()}
    found = {name: mask.clone() for name, mask in held.items() if mask is not None}
    if not found:
        raise MaskError(
            "the model holds no masks of ModelOpt; set_masks(model, masks) puts some in"
        )
    return Masks(found)


def _sparse_modules(model: nn.Module) -> dict[str, SparseModule]:
    """ModelOpt's modules by the name of their weight."""
    return {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if isinstance(module, SparseModule)
    }


def _check_layers(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Refuses weights that ModelOpt has no place for."""
    for name in masks:
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, SparseModule) and attribute == "weight":
            continue
        if attribute not in module._parameters:
            raise MaskError(
                f"'{name}' already carries a mask or another parametrization: call "
                f"pxfast.bake(model, in_place=True) first"
            )
        if type(module) not in (nn.Linear, nn.Conv2d) or attribute != "weight":
            raise MaskError(
                f"ModelOpt masks the weights of nn.Linear and nn.Conv2d layers only, and '{name}' "
                f"is one of {type(module).__name__}: prune with exclude=['{name}']"
            )
