"""Scores: one number per weight, the higher the more it is worth keeping."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pxfast.batches import is_finite
from pxfast.errors import FileFormatError, MaskError, RangeError
from pxfast.selection.files import read_tensors, write_tensors
from pxfast.selection.importance import importance_scores
from pxfast.selection.masks import Masks, as_masks
from pxfast.selection.named import NamedTensors
from pxfast.selection.patterns import Pattern, named
from pxfast.selection.policy import Policy

KIND = "pxfast.scores"


class Scores(NamedTensors):
    """Scores by the name of their weight, in the model's parameter order.

    `pxfast.score` returns them; scores made by any other criterion serve as well.

    Args:
        mapping: Finite floating tensors by weight name (``"layer1.0.conv1.weight"``), each of its
            weight's shape. The order decides ties.
        provenance: How they were made; goes into the masks and their file. Values that JSON can
            hold.

    Raises:
        TypeError: If a value is not a dense floating tensor.
        RangeError: If a tensor holds NaN or infinity.

    Example:
        >>> scores = Scores({"fc.weight": torch.tensor([[0.3, 0.1], [0.2, 0.4]])})
        >>> scores.masks(density=0.5)["fc.weight"]
        tensor([[ True, False],
                [False,  True]])
    """

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        tensor = super()._checked(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"Scores: '{name}' must be a floating tensor, got {tensor.dtype}")
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).count_nonzero())
            raise RangeError(
                f"Scores: '{name}' has {bad} NaN or infinite of {tensor.numel()} scores, which "
                f"have no order. Look for NaN in the weights or the data, or for overflow"
            )
        return tensor

    @classmethod
    def of_finite(cls, mapping: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> Scores:
        """Scores that are known to be finite floating tensors: they are not read again."""
        scores = cls.__new__(cls)
        scores._tensors, scores.provenance = dict(mapping), dict(provenance)
        return scores

    def totals(self) -> dict[str, float]:
        """Returns the sum of each layer's scores, summed in float64."""
        return {name: float(score.sum(dtype=torch.float64)) for name, score in self.items()}

    def masks(
        self,
        *,
        density: float | None = None,
        sparsity: float | None = None,
        scope: str = "global",
        pattern: Pattern | str | None = None,
        min_density: float | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Masks:
        """Keeps the highest scores, exactly as many as asked for.

        ``round(density * total)`` weights are kept, or groups of weights, if there is a pattern. Of
        equal scores the earlier in parameter order stays, on every device alike.

        Args:
            density: Fraction of the weights to keep, in (0, 1].
            sparsity: Fraction of the weights to remove, instead of `density`.
            scope: "global": all weights compete; "layer": each layer keeps its own fraction.
            pattern: What is kept or removed as one: "2:4" or any N:M, "channels", an object of
                `pxfast.patterns`, or None for single weights. N:M sets the density itself.
            min_density: Fraction that every layer keeps at least (and at least one weight, or
                group), so that none becomes empty; the rest competes. None: no such floor.
            masks: Earlier masks by name. What they removed never returns, whatever its score.

        Returns:
            Masks of the same names and shapes, on the scores' devices.

        Raises:
            ValueError: If not exactly one of density and sparsity is given, an option is out of its
                range, or two contradict each other.
            MaskError: If `masks` or the pattern do not fit, or the density keeps nothing, more than
                are alive, or less than the floors.
        """
        policy = Policy(scope, named(pattern), min_density)
        kept_fraction = policy.resolve(density, sparsity)
        selection = policy.over(self, self._alive({} if masks is None else masks))
        selection.check(kept_fraction)
        for note in selection.notes():
            warnings.warn(note, UserWarning, stacklevel=2)
        provenance = {**self.provenance, "density": kept_fraction, **policy.provenance()}
        return Masks(selection.masks(kept_fraction), provenance)

    def _alive(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns earlier masks as bool tensors that fit these scores."""
        alive = as_masks(masks)
        if unknown := [name for name in alive if name not in self]:
            raise MaskError(
                f"masks= names weights that have no score: {', '.join(unknown)}. "
                f"Scored are: {', '.join(self)}"
            )
        for name, mask in alive.items():
            if mask.shape != self[name].shape:
                raise MaskError(
                    f"masks= has shape {list(mask.shape)} for '{name}', "
                    f"expected the scores' shape {list(self[name].shape)}"
                )
        return alive

    def as_importance_scores(self, model: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
        """Returns the scores as ``torch.nn.utils.prune.global_unstructured`` takes them.

        That function takes the magnitude of a parameter that has no scores. With what this returns
        it raises a MaskError instead, which names the parameter: leave it out of ``parameters``.
        The output projection of nn.MultiheadAttention is refused too, since its hooks never run;
        `Masks.apply_` masks it.

        Args:
            model: The model that was scored.

        Returns:
            Scores by ``(module, "weight")``, on the device of each weight; those of a shared weight
            at each of its places.

        Raises:
            MaskError: If a name or a shape is not one of the model's.
        """
        return importance_scores(model, self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the scores as safetensors, atomically: the file is whole or as it was before.

        Raises:
            OSError: If the file cannot be written.
        """
        content = {"names": list(self), "provenance": self.provenance}
        write_tensors(path, KIND, dict(self), content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Reads scores that `save` wrote, onto the CPU.

        Raises:
            FileFormatError: If the file is damaged, truncated or not one of scores.
            OSError: If it cannot be read.
        """
        tensors, content = read_tensors(path, KIND)
        names = content.get("names")
        if not isinstance(names, list) or set(names) != set(tensors):
            raise FileFormatError(f"{path}: the list of names does not match the tensors")
        return cls({name: tensors[name] for name in names}, content.get("provenance"))

    def __repr__(self) -> str:
        criterion = self.provenance.get("criterion", "unknown criterion")
        return f"Scores({len(self)} layers, {self.total:,} weights, {criterion})"
