"""NNCF: masks in its pruning hooks, for its own training and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from pxfast._optional import require
from pxfast.errors import MaskError
from pxfast.selection.masks import Masks, as_masks
from pxfast.selection.weights import check_fit

require("nncf", "pxfast.integrations.nncf", "pxfast[nncf]")

from nncf.torch.function_hook.pruning.magnitude.algo import get_pruned_modules  # noqa: E402
from nncf.torch.function_hook.pruning.magnitude.modules import UnstructuredPruningMask  # noqa: E402
from nncf.torch.function_hook.wrapper import (  # noqa: E402
    is_wrapped,
    register_post_function_hook,
    wrap_model,
)

Model = TypeVar("Model", bound=nn.Module)


def set_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Puts masks into NNCF's pruning hooks, as ``nncf.prune`` does with those it chooses itself.

    The model is wrapped by NNCF if it is not yet. From then on its forward multiplies the weights
    by ``binary_mask`` of a hook each, and NNCF's tools go on from there:
    training, ``nncf.pruning_statistic``, quantisation, and
    ``nncf.strip(model, strip_format=nncf.StripFormat.IN_PLACE)``, which makes the zeros permanent.
    pxfast scores the model under these
    masks, too. Masks that NNCF holds for other weights stay.

    Args:
        model: The model, changed; also one that ``nncf.prune`` has returned. Its parameters must be
            plain: NNCF recognises weights by their parameter.
        masks: Masks by parameter name.

    Returns:
        The model.

    Raises:
        MaskError: If masks do not fit, or a weight is no plain parameter; the model is then
            unchanged.
    """
    wanted = as_masks(masks)
    check_fit(model, wanted)
    parameters = dict(model.named_parameters())
    if computed := [name for name in wanted if name not in parameters]:
        raise MaskError(
            f"{', '.join(map(repr, computed))}: NNCF masks parameters, and here another mask or a "
            f"parametrization computes the weight. Call pxfast.bake(model, in_place=True) first"
        )
    if isinstance(model, nn.Sequential):
        raise MaskError(
            "NNCF adds a module of its own to the model, which nn.Sequential would call: put it "
            "into a module with a forward"
        )
    wrap_model(model)
    held = get_pruned_modules(model)
    for name, mask in wanted.items():
        if name not in held:
            held[name] = UnstructuredPruningMask(tuple(mask.shape)).to(parameters[name].device)
            register_post_function_hook(model, op_name=name, port_id=0, hook=held[name])
        held[name].binary_mask.copy_(mask)
    return model


def masks_of(model: nn.Module) -> Masks:
    """Reads the masks of NNCF's pruning hooks, in the model's parameter order.

    Raises:
        MaskError: If there are none.
    """
    held: dict[str, Any] = get_pruned_modules(model) if is_wrapped(model) else {}
    if not held:
        raise MaskError("the model holds no masks of NNCF; set_masks(model, masks) puts some in")
    order = [name for name, _ in model.named_parameters() if name in held]
    return Masks({name: held[name].binary_mask.clone() for name in order})
