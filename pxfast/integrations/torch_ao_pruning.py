"""torch.ao.pruning: a sparsifier whose masks keep the highest PX scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.ao.pruning.sparsifier.base_sparsifier import BaseSparsifier
from torch.ao.pruning.sparsifier.utils import FakeSparsity

from pxfast.errors import PxfastError
from pxfast.preparation import layer_weights
from pxfast.scoring import Scorer
from pxfast.selection.scores import Scores

if TYPE_CHECKING:
    from pxfast.criteria import Criterion


class PXSparsifier(BaseSparsifier):
    """Prepares, masks and squashes a model as other sparsifiers do; each `step` scores it anew.

    All weights with the same ``sparsity_level`` compete with each other. Removed weights never
    return: a level below what is removed already changes nothing. torch.ao.pruning's schedulers
    work as with other sparsifiers.

    Args:
        data: What to score on, as for `pxfast.score`.
        sparsity_level: Fraction of the weights to remove, in [0, 1), unless a tensor's
            configuration says otherwise.
        scope: ``"global"``, or ``"layer"``: each tensor keeps its own fraction.
        criterion: As for `pxfast.score`.
        options: Further options of `pxfast.score`, such as ``output``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> sparsifier = PXSparsifier(torch.randn(16, 4), sparsity_level=0.75)
        >>> sparsifier.prepare(model)
        >>> sparsifier.step()
        >>> sparsifier.squash_mask()
        >>> sum(int(layer.weight.count_nonzero()) for layer in (model[0], model[2]))
        12
    """

    def __init__(
        self,
        data: Any,
        sparsity_level: float = 0.5,
        *,
        scope: str = "global",
        criterion: str | Criterion = "px",
        **options: Any,
    ):
        super().__init__(defaults={"sparsity_level": sparsity_level})
        self._data, self._scope = data, scope
        self._criterion, self._options = criterion, options
        self._scorer: Scorer | None = None
        self._masks: Mapping[str, Tensor] | None = None

    def prepare(self, model: nn.Module, config: list[dict[str, Any]] | None = None) -> None:
        """Adds a mask to the weights, as a parametrization.

        Args:
            model: The model, changed.
            config: Dictionaries with a ``tensor_fqn`` and, if it is to have its own, a
                ``sparsity_level``. None: the weights of all linear and convolution layers.
        """
        super().prepare(model, config)

    def make_config_from_model(self, model: nn.Module, SUPPORTED_MODULES: object = None) -> None:
        """Chooses the weights of all linear and convolution layers, whatever is said to be
        supported."""
        self.config = [{"tensor_fqn": name} for name in layer_weights(model)]

    def step(self, use_path: bool = True) -> None:
        """Scores the model under its masks and updates them."""
        if self.enable_mask_update:
            self._masks = self._selected()
        super().step(use_path)

    def update_mask(  # type: ignore[override]
        self, module: nn.Module, tensor_name: str, tensor_fqn: str, **_: Any
    ) -> None:
        """Overwrites the mask of one tensor with what the last `step` found, or with a first
        selection."""
        if self._masks is None:
            self._masks = self._selected()
        if tensor_fqn in self._masks:
            _mask(module, tensor_name).copy_(self._masks[tensor_fqn])

    def _selected(self) -> dict[str, Tensor]:
        """New masks of the tensors that have scores, chosen among those of the same level."""
        names = [group["tensor_fqn"] for group in self.groups]
        if self._scorer is None or self._scorer.model is not self.model:
            self._scorer = Scorer(
                self.model, self._data, self._criterion, include=names, **self._options
            )
        scores = self._scorer(progress=False)
        unused = scores.provenance.get("unused", [])
        if without := [name for name in names if name not in scores and name not in unused]:
            raise PxfastError(
                f"config: '{without[0]}' has no scores, since it is no weight of a linear layer or "
                f"a convolution. Leave it out"
            )
        levels: dict[float, list[str]] = {}
        for name in scores:  # in parameter order
            group = self.groups[names.index(name)]
            levels.setdefault(group["sparsity_level"], []).append(name)
        found: dict[str, Tensor] = {}
        for level, members in levels.items():
            together = [members] if self._scope == "global" else [[name] for name in members]
            for chosen in together:
                found |= self._keep({name: scores[name] for name in chosen}, level)
        return found

    def _keep(self, scores: Mapping[str, Tensor], level: float) -> Mapping[str, Tensor]:
        alive = {
            group["tensor_fqn"]: _mask(group["module"], group["tensor_name"]) != 0
            for group in self.groups
            if group["tensor_fqn"] in scores
        }
        if not 0 <= level < 1:
            raise ValueError(
                f"sparsity_level must be in [0, 1), got {level}: the fraction of weights to "
                f"remove, not percent"
            )
        chosen = Scores(scores)
        left = sum(int(mask.count_nonzero()) for mask in alive.values()) / chosen.total
        if left == 0 or 1 - level >= left:
            return alive
        return chosen.masks(sparsity=level, masks=alive)


def _mask(module: nn.Module, tensor_name: str) -> Tensor:
    """The mask that a prepared module multiplies with."""
    chain: Any = module.parametrizations
    step = next(step for step in chain[tensor_name] if isinstance(step, FakeSparsity))
    mask = step.mask
    assert isinstance(mask, torch.Tensor)
    return mask
