"""ONNX: export of a pruned model with its zeros in place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pxfast._optional import require
from pxfast.errors import MaskError
from pxfast.paths.names import attribute_of
from pxfast.selection.bake import bake
from pxfast.selection.masks import as_masks
from pxfast.selection.weights import check_fit, own_masks
from pxfast.unwrap import unwrapped

for _library in ("onnx", "onnxscript"):
    require(_library, "pxfast.integrations.onnx", "pxfast[onnx]")


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    file: str | os.PathLike[str] | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> torch.onnx.ONNXProgram:
    """Exports a copy of a pruned model, masks made permanent, and checks its zeros.

    The copy is in evaluation mode; the model itself stays as it is and can go on training.

    Args:
        model: A model with masks applied to it, by `Masks.apply_` or torch.nn.utils.prune.
        args: Inputs of its forward, as ``torch.onnx.export`` takes them.
        file: Where to write; None: nowhere.
        masks: Masks by weight name, where the model does not carry them any more: the weights must
            hold their zeros.
        options: More options of ``torch.onnx.export``, such as ``dynamic_shapes``.

    Returns:
        The exported program.

    Raises:
        MaskError: If masks do not fit the model or its zeros, or these are not in the program.
    """
    model = unwrapped(model)
    wanted = own_masks(model) | as_masks({} if masks is None else masks)
    check_fit(model, wanted)
    plain = bake(model).eval()
    weights = {name: _weight(plain, name, mask) for name, mask in wanted.items()}
    options.setdefault("verbose", False)
    program = torch.onnx.export(plain, args, dynamo=True, **options)
    assert program is not None  # dynamo=True
    stored_as(program, weights)
    if file is not None:
        program.save(file)
    return program


def stored_as(program: torch.onnx.ONNXProgram, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Finds the initialiser of every weight, with exactly its zeros.

    An exporter may fold a BatchNorm into a weight, which keeps name and zeros, or store a matrix
    transposed under another name.

    Args:
        program: What ``torch.onnx.export(…, dynamo=True)`` returned.
        weights: Pruned weights by name, zeros included.

    Returns:
        The initialiser's name by weight name.

    Raises:
        MaskError: If the zeros of a weight are not in the program.
    """
    kept = {
        name: torch.from_numpy(value.const_value.numpy().copy()) != 0
        for name, value in program.model.graph.initializers.items()
        if value.const_value is not None
    }
    found: dict[str, str] = {}
    for name, weight in weights.items():
        layouts = [weight != 0, weight.T != 0] if weight.dim() == 2 else [weight != 0]
        candidates = [name] if name in kept else list(kept)
        matches = [
            other
            for other in candidates
            if any(torch.equal(kept[other], layout) for layout in layouts)
        ]
        if not matches:
            raise MaskError(
                f"the exported program has no initialiser with the zeros of '{name}': the exporter "
                f"rewrote this weight. Try optimize=False"
            )
        found[name] = matches[0]
    return found


def _weight(model: nn.Module, name: str, mask: Tensor) -> Tensor:
    """A weight on the CPU, which must hold the zeros of its mask."""
    weight = attribute_of(model, name).detach().cpu()
    if bool(weight[~mask.cpu()].any()):
        raise MaskError(
            f"'{name}' is not 0 where its mask removes weights: apply the masks before exporting, "
            f"by masks.apply_(model)"
        )
    return weight
