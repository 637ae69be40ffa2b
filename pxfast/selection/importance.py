"""Scores in the form in which torch.nn.utils.prune takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pxfast.errors import MaskError
from pxfast.selection.weights import never_called, placed
from pxfast.unwrap import unwrapped


class ImportanceScores(dict[tuple[nn.Module, str], Tensor]):
    """Scores by module and parameter name, for ``torch.nn.utils.prune.global_unstructured``.

    That function asks with ``get`` and takes the weight itself, so its magnitude, for a parameter
    that has no scores. Here ``get`` raises instead: magnitudes and scores have no common scale.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self._names = {module: name for name, module in unwrapped(model).named_modules()}
        self._never_called = never_called(model)

    def get(self, key: Any, default: Any = None) -> Any:
        """Returns the scores of ``(module, name)``; the default is never used.

        Raises:
            MaskError: If there are none, or torch.nn.utils.prune cannot mask the parameter.
        """
        module, attribute = key
        name = f"{self._names.get(module, type(module).__name__)}.{attribute}"
        if module in self._never_called:
            raise MaskError(
                f"'{name}' cannot be pruned by torch.nn.utils.prune: nn.MultiheadAttention never "
                f"calls this module, so its hook would not run. Leave it out of parameters=, and "
                f"use masks.apply_(model) to prune it"
            )
        if key not in self:
            raise MaskError(
                f"'{name}' has no scores, and torch.nn.utils.prune would take its magnitude "
                f"instead: leave it out of parameters=, or score it"
            )
        return self[key]


def importance_scores(model: nn.Module, scores: Mapping[str, Tensor]) -> ImportanceScores:
    """Returns scores by module and parameter name, those of a shared weight at each of its places.

    Raises:
        MaskError: If a name or a shape is not one of the model's.
    """
    found = ImportanceScores(model)
    for place, score in placed(model, scores, "score"):
        found[place.module, place.attribute] = score.to(place.parameter.device)
    return found
