"""Hugging Face accelerate: masks for models whose weights it keeps on the CPU or on disk.

Scoring needs nothing of this file: ``pxfast.score`` and ``pxfast.prune`` take models after
``cpu_offload``, ``disk_offload`` and ``dispatch_model`` (device_map) as they are. The hooks load
each module's weights as in any forward, the backward loads them again, scores stay on the CPU, and
the model is still offloaded afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pxfast._optional import require
from pxfast.errors import MaskError
from pxfast.offload import Offloaded
from pxfast.selection.masks import Masks, as_masks
from pxfast.selection.weights import check_fit
from pxfast.unwrap import unwrapped

_utils = require("accelerate.utils", "pxfast.integrations.accelerate", "pxfast[transformers]")

Model = TypeVar("Model", bound=nn.Module)


def apply_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Sets removed weights of an offloaded model to 0, where they are stored.

    On the CPU in place, on disk in the files of the offload folder; weights that are not offloaded
    in the model itself, as ``masks.apply_(model, in_place=True)`` does.

    Args:
        model: A model that accelerate has offloaded; what it computes is changed.
        masks: Masks by parameter name.

    Returns:
        The model.

    Raises:
        MaskError: If masks do not fit, or weights are stored in the files of a checkpoint, which
            others may use; nothing is changed then.
    """
    wanted = as_masks(masks)
    inner = unwrapped(model)
    check_fit(inner, wanted)
    offloaded = Offloaded(inner)
    stores = {name: _store(offloaded, name) for name in wanted if name in offloaded}
    here = {name: mask for name, mask in wanted.items() if name not in stores}
    if here:
        Masks(here).apply_(inner, in_place=True)
    for name, (store, key) in stores.items():
        removed = ~wanted[name].cpu()
        in_memory = getattr(store, "state_dict", store)
        if key in in_memory:
            with torch.no_grad():
                in_memory[key].masked_fill_(removed.to(in_memory[key].device), 0)
        else:
            _utils.offload_weight(store[key].masked_fill(removed, 0), key, store.save_folder)
    return model


def _store(offloaded: Offloaded, name: str) -> tuple[Any, str]:
    """What holds a weight, a dictionary or a folder, and its key there."""
    store, key = offloaded.stored(name)
    while hasattr(store, "prefix"):
        store, key = store.dataset, f"{store.prefix}{key}"
    in_memory = key in getattr(store, "state_dict", store if isinstance(store, dict) else ())
    file = None if in_memory else getattr(store, "index", {}).get(key, {}).get("safetensors_file")
    if file is not None:
        raise MaskError(
            f"'{name}' is read from the checkpoint {file}, which is not changed here: apply the "
            f"masks to the model in memory, save it by pxfast.integrations.transformers."
            f"save_pretrained, and offload what is loaded from there"
        )
    return store, key
