"""Masks: which weights stay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pxfast.errors import MaskError
from pxfast.selection.files import pack_masks, read_tensors, unpack_masks, write_tensors
from pxfast.selection.named import NamedTensors
from pxfast.selection.weights import apply_masks, own_masks, zero_masks

KIND = "pxfast.masks"
Model = TypeVar("Model", bound=nn.Module)


class Layer(NamedTuple):
    """One row of the table of layers."""

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int

    @property
    def density(self) -> float:
        """Fraction of the layer's weights that are kept."""
        return self.kept / self.weights if self.weights else 1.0


class Masks(NamedTensors):
    """Bool masks by the name of their weight (True = kept), in the model's parameter order.

    Args:
        mapping: Bool tensors, or others that hold only 0 and 1, by weight name, each of its
            weight's shape.
        provenance: How they were made; goes into the file. Values that JSON can hold.

    Raises:
        MaskError: If a tensor holds anything but 0 and 1.

    Example:
        >>> masks = Masks({"weight": torch.tensor([[1, 0], [0, 1]])})
        >>> masks.density, masks.kept, masks.total
        (0.5, 2, 4)
        >>> bool(masks.apply_(nn.Linear(2, 2)).weight[0, 1] == 0)
        True
    """

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        return as_mask(name, super()._checked(name, tensor))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """One row per layer: name, shape, number of weights, number kept, density."""
        return tuple(
            Layer(name, tuple(mask.shape), mask.numel(), int(mask.count_nonzero()))
            for name, mask in self.items()
        )

    @property
    def kept(self) -> int:
        """Number of weights that are kept."""
        return sum(layer.kept for layer in self.layers)

    @property
    def density(self) -> float:
        """Fraction of the weights that are kept."""
        return self.kept / self.total

    def summary(self) -> str:
        """Returns a table of the layers and their densities as plain text.

        A layer without any weight left is marked "empty".
        """
        head = ("weight", "shape", "weights", "kept", "density", "")
        rows = [
            _row(x.name, "x".join(map(str, x.shape)), x.weights, x.kept, x.density)
            for x in self.layers
        ]
        rows.append(_row(f"all {len(self)} layers", "", self.total, self.kept, self.density))
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if index in (0, 1, 5) else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def apply_(self, model: Model, in_place: bool = False) -> Model:
        """Masks the weights of a model.

        By default through ``torch.nn.utils.prune``: the weight moves to ``weight_orig`` beside
        ``weight_mask``, every forward multiplies them, and so any training keeps the zeros, with
        momentum and weight decay too. Weights that are already pruned keep both masks. Make
        the optimiser after this call; afterwards ``torch.nn.utils.prune.remove`` makes the zeros
        permanent. A parametrized weight, and the output projection of nn.MultiheadAttention,
        whose hooks torch never calls, get a parametrization instead, which
        ``torch.nn.utils.parametrize.remove_parametrizations`` makes permanent.

        Args:
            model: The model, changed. Masks move to the device of each weight.
            in_place: Set the removed weights to 0 and nothing else: a step of training would
                bring them back.

        Returns:
            The model.

        Raises:
            MaskError: If names or shapes do not match, or a weight cannot be masked in this way;
                the model is then unchanged.
        """
        apply_masks(model, self, in_place=in_place)
        return model

    @classmethod
    def from_model(cls, model: nn.Module, zeros: bool = False) -> Masks:
        """Reads the masks that a model carries, by torch.nn.utils.prune or `apply_`.

        Args:
            model: The model, also wrapped by torch.compile or DDP.
            zeros: Read them from the zeros in the weights of all linear and convolution layers
                instead: for a model whose masks were made permanent, by
                ``torch.nn.utils.prune.remove`` or ``apply_(in_place=True)``.

        Returns:
            Masks of the weights that have one, in the model's parameter order; a shared weight
            counts once, under its first name.

        Raises:
            MaskError: If there are none.
        """
        if masks := zero_masks(model) if zeros else own_masks(model):
            return cls(masks)
        raise MaskError(
            "the model has no linear or convolution layer"
            if zeros
            else "the model carries no masks. If they were made permanent, give zeros=True to read "
            "them from the weights"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the masks as safetensors, one bit a weight, with their provenance.

        Atomically: the file is whole or as it was before.

        Raises:
            OSError: If the file cannot be written.
        """
        packed, shapes = pack_masks(self)
        write_tensors(path, KIND, packed, {"shapes": shapes, "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Reads masks that `save` wrote, onto the CPU; `apply_` checks them against a model.

        Raises:
            FileFormatError: If the file is damaged, truncated or not one of masks.
            OSError: If it cannot be read.
        """
        packed, content = read_tensors(path, KIND)
        masks = unpack_masks(path, packed, content.get("shapes", {}))
        return cls(masks, content.get("provenance"))

    def __repr__(self) -> str:
        return (
            f"Masks({len(self)} layers, {self.kept:,} of {self.total:,} weights kept, "
            f"density {self.density:.6g})"
        )


def as_mask(name: str, tensor: Tensor) -> Tensor:
    """Returns a bool mask, from a bool tensor or one of 0 and 1.

    Raises:
        MaskError: If it holds anything else.
    """
    if not isinstance(tensor, Tensor):
        raise MaskError(f"the mask of '{name}' must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype == torch.bool:
        return tensor
    kept = tensor != 0
    if not bool(((tensor == 1) | ~kept).all()):
        raise MaskError(
            f"the mask of '{name}' must hold only 0 and 1 (or bool), got other values in "
            f"{tensor.dtype}. Scores become masks by pxfast.Scores(mapping).masks(density=…)"
        )
    return kept


def as_masks(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns bool masks of any mapping of names to 0/1 tensors.

    Raises:
        TypeError: If it is no mapping.
        MaskError: If a tensor holds anything but 0 and 1.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks must be a mapping of names to tensors, got {type(masks).__name__}")
    return {name: as_mask(name, mask) for name, mask in masks.items()}


def _row(name: str, shape: str, weights: int, kept: int, density: float) -> tuple[str, ...]:
    mark = "empty" if weights and not kept else ""
    return name, shape, f"{weights:,}", f"{kept:,}", f"{100 * density:.3f}%", mark
