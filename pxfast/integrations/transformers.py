"""Hugging Face transformers: pruned models in the folders that `from_pretrained` reads.

Scoring needs nothing of this file: ``pxfast.score(model, {"pixel_values": images})`` takes the
library's batches, and ``output="pooler_output"`` chooses among its outputs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pxfast._optional import require
from pxfast.selection.bake import bake
from pxfast.selection.masks import Masks
from pxfast.unwrap import unwrapped

require("transformers", "pxfast.integrations.transformers", "pxfast[transformers]")

MASKS_FILE = "pxfast_masks.safetensors"  # from_pretrained reads model*.safetensors only


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    masks: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Masks:
    """Saves a pruned model with zeros in its weights, and its masks beside it.

    What is saved is a plain model: ``from_pretrained`` loads it with or without pxfast. The model
    itself stays as it is, also under masks of torch.nn.utils.prune, and can go on training.

    Args:
        model: A model of transformers.
        folder: Where to, as for the model's own ``save_pretrained``.
        masks: Masks by parameter name. None: those that the model carries, by `Masks.apply_`.
        options: More options of the model's ``save_pretrained``.

    Returns:
        The masks that were saved.

    Raises:
        MaskError: If the model carries no masks and none are given, or they do not fit.
    """
    model = unwrapped(model)
    if masks is None:
        saved = Masks.from_model(model)
    else:
        saved = masks if isinstance(masks, Masks) else Masks(masks)
    plain: Any = saved.apply_(bake(model), in_place=True)
    plain.save_pretrained(folder, **options)
    saved.save(Path(folder) / MASKS_FILE)
    return saved


def load_masks(folder: str | os.PathLike[str]) -> Masks:
    """Reads the masks that `save_pretrained` has put beside a model.

    ``load_masks(folder).apply_(model)`` masks the model that ``from_pretrained(folder)`` returned,
    so that training keeps the zeros.

    Raises:
        FileFormatError: If the file is damaged, truncated or not one of masks.
        OSError: If it cannot be read.
    """
    return Masks.load(Path(folder) / MASKS_FILE)
