"""torch.nn.utils.prune: a pruning method that keeps the highest PX scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from pxfast.errors import PxfastError
from pxfast.selection.scores import Scores


class PXUnstructured(BasePruningMethod):
    """Removes the weights with the lowest PX scores: exactly as many as asked for, of equal scores
    the later ones.

    It takes scores only, and never falls back to magnitudes, as torch's own methods do.

    Args:
        amount: Fraction of the weights to remove, or their number if it is an int. As everywhere in
            torch.nn.utils.prune, only weights that are not pruned yet count.

    Example:
        >>> import torch, pxfast
        >>> from torch.nn.utils import prune
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> scores = pxfast.score(model, torch.randn(16, 4))
        >>> _ = PXUnstructured.apply(model[0], "weight", 0.75, scores["0.weight"])
        >>> int(model[0].weight_mask.sum())
        8
        >>> prune.global_unstructured(
        ...     [(model[0], "weight"), (model[2], "weight")], PXUnstructured, amount=0.5,
        ...     importance_scores=scores.as_importance_scores(model),
        ... )
        >>> int(model[0].weight_mask.sum() + model[2].weight_mask.sum())  # 24 were left
        12
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float | int):
        fraction = isinstance(amount, float)
        if amount < 0 or (fraction and amount >= 1):
            raise ValueError(f"amount must be a fraction in [0, 1) or a count, got {amount!r}")
        self.amount = amount

    @classmethod
    def apply(  # type: ignore[override]
        cls, module: nn.Module, name: str, amount: float | int, importance_scores: Tensor
    ) -> BasePruningMethod:
        """Masks one parameter of a module, ``name``, by its scores.

        Raises:
            TypeError: If the scores are no tensor.
        """
        if not isinstance(importance_scores, Tensor):
            raise TypeError(
                f"importance_scores must be the scores of '{name}', such as scores['layer.{name}'],"
                f" got {type(importance_scores).__name__}"
            )
        return super().apply(module, name, amount=amount, importance_scores=importance_scores)

    def compute_mask(  # type: ignore[override]
        self, t: Tensor, default_mask: Tensor
    ) -> Tensor:
        """Returns the mask of scores ``t``; what ``default_mask`` removed stays removed."""
        if bool((t < 0).any()):
            raise PxfastError(
                "PX scores are never negative, so these are something else, perhaps the weights "
                "themselves: give importance_scores=scores.as_importance_scores(model)"
            )
        total = t.numel()
        amount: Any = self.amount
        keep = round((1 - amount) * total) if isinstance(amount, float) else total - amount
        scores = Scores({"scores": t})
        masks = scores.masks(density=keep / total, masks={"scores": default_mask})
        return masks["scores"].to(default_mask.dtype)
