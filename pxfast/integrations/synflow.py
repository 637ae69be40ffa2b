"""The Synaptic-Flow family (ganguli-lab/Synaptic-Flow, the official PX code, NTK-SAP and their
forks): PX as one of their pruners.

Layers there multiply every weight by a buffer ``weight_mask`` in their forward; a pruner holds the
pairs of masks and parameters, scores the parameters and overwrites the masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pxfast.data import balanced_subset
from pxfast.errors import PxfastError
from pxfast.paths.names import named_weights
from pxfast.reference import official as official_code
from pxfast.scoring import Scorer
from pxfast.selection.scores import Scores
from pxfast.unwrap import unwrapped

if TYPE_CHECKING:
    from pxfast.criteria import Criterion

Pair = tuple[Tensor, nn.Parameter]


class PX:
    """PX scores behind the interface of that family's pruners.

    Every call of `score` sees the same batches, shuffled loaders and random augmentation included,
    and leaves the model, its mode and all random generators as they are.

    Args:
        masked_parameters: Pairs ``(mask, parameter)`` of linear and convolution weights, as
            ``generator.masked_parameters(model)`` yields them.
        criterion: As for `pxfast.score`: ``"px"``, ``"px-joint"`` or another.
        exact: True keeps exactly ``round(sparsity * total)`` weights, as pxfast does elsewhere.
            False is that family's rule: all scores up to that of the last removed weight go, equal
            ones too.
        official: Scores as the last version of the official code computes them, at its cost; for
            comparisons (docs/method.md, section 8). Then ``criterion`` and ``options`` do not
            count.
        per_class: Score on so many samples of each class of the loader's data set, the same ones
            in every call, instead of on the whole loader. The paper takes 10.
        ntksap_epsilon: Not used; NTK-SAP's loop gives it to every pruner.
        ntksap_R: Likewise.
        options: Further options of `pxfast.score`, such as ``output``.

    Attributes:
        masked_parameters: The pairs, as a list.
        scores: Tensors by ``id(parameter)``, of its shape; empty before the first `score`.

    Example:
        >>> class Linear(nn.Linear):
        ...     def __init__(self, *sizes):
        ...         super().__init__(*sizes)
        ...         self.register_buffer("weight_mask", torch.ones_like(self.weight))
        ...     def forward(self, x):
        ...         return nn.functional.linear(x, self.weight_mask * self.weight, self.bias)
        >>> model = nn.Sequential(Linear(4, 8), nn.ReLU(), Linear(8, 2))
        >>> pruner = PX((layer.weight_mask, layer.weight) for layer in (model[0], model[2]))
        >>> for round in range(10):  # the loop of prune.py
        ...     pruner.score(model, None, [(torch.randn(16, 4), None)], "cpu")
        ...     pruner.mask(0.25 ** ((round + 1) / 10), "global")
        >>> pruner.stats()
        (12.0, 48)
    """

    def __init__(
        self,
        masked_parameters: Iterable[Pair],
        *,
        criterion: str | Criterion = "px",
        exact: bool = True,
        official: bool = False,
        per_class: int | None = None,
        ntksap_epsilon: object = None,
        ntksap_R: object = None,
        **options: Any,
    ):
        self.masked_parameters = list(masked_parameters)
        self.scores: dict[int, Tensor] = {}
        self.exact, self.official, self.per_class = exact, official, per_class
        self._criterion, self._options = criterion, options
        self._loader: object = None
        self._scorer: Scorer | None = None

    def score(self, model: nn.Module, loss: object, dataloader: Any, device: object) -> None:
        """Scores the parameters under the masks that the model's own forward applies.

        Args:
            model: The network whose masks and parameters these are.
            loss: Not used, nor are labels.
            dataloader: Batches, as for `pxfast.score`.
            device: Not used: batches go to where the model is.

        Raises:
            PxfastError: If a parameter is not the model's, or cannot get scores (biases and norms).
        """
        scorer, names = self._prepared(model, dataloader)
        unused: list[str] = []
        if self.official:
            masks = {name: mask for name, (mask, _) in self._named(names)}
            found = official_code.score(unwrapped(model), scorer.data, masks)
        else:
            found = scorer(progress=False)
            unused = found.provenance.get("unused", [])
        for name, (_, parameter) in self._named(names):
            if name not in found and name not in unused:
                raise PxfastError(
                    f"masked_parameters: '{name}' has no scores, since it is no weight of a linear "
                    f"layer or a convolution. Leave it out: bias=False, batchnorm=False, "
                    f"residual=False"
                )
            self.scores[id(parameter)] = (
                found[name] if name in found else torch.zeros_like(parameter.detach())
            )

    def mask(self, sparsity: float, scope: str) -> None:
        """Keeps the weights with the highest scores; what was removed before stays removed.

        Args:
            sparsity: The fraction of the weights to KEEP, as that family uses the word; where fewer
                are left already, those.
            scope: ``"global"``: all parameters compete; ``"local"``: each keeps that fraction.

        Raises:
            ValueError: If the scope is neither, or the sparsity not in (0, 1].
            PxfastError: If there are no scores yet.
        """
        if scope not in ("global", "local"):
            raise ValueError(f"scope must be 'global' or 'local', got {scope!r}")
        if not 0 < sparsity <= 1:
            raise ValueError(
                f"sparsity must be in (0, 1], got {sparsity}: the fraction of weights to keep, not "
                f"percent"
            )
        if not self.scores:
            raise PxfastError("there are no scores yet: call score(model, …) before mask(…)")
        pairs = self.masked_parameters
        keep = self._keep_exactly if self.exact else self._keep_above
        for group in [pairs] if scope == "global" else [[pair] for pair in pairs]:
            keep(group, sparsity)

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Sets the removed weights to 0 in the parameters themselves."""
        for mask, parameter in self.masked_parameters:
            parameter.mul_(mask)

    def alpha_mask(self, alpha: float) -> None:
        """Sets every entry of the masks to ``alpha``."""
        for mask, _ in self.masked_parameters:
            mask.fill_(alpha)

    def shuffle(self) -> None:
        """Permutes the entries of each mask at random."""
        for mask, _ in self.masked_parameters:
            order = torch.randperm(mask.numel(), device=mask.device)
            mask.copy_(mask.flatten()[order].view_as(mask))

    def invert(self) -> None:
        """Replaces every score by its reciprocal, that of 0 by the largest number there is."""
        for score in self.scores.values():
            score.reciprocal_().clamp_(max=torch.finfo(score.dtype).max)

    def stats(self) -> tuple[float, int]:
        """Returns how many weights remain, and how many there are."""
        masks = [mask for mask, _ in self.masked_parameters]
        return sum(float(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)

    def _prepared(self, model: nn.Module, dataloader: Any) -> tuple[Scorer, list[str]]:
        """The scorer of a model on a loader, kept from call to call, and the parameters' names."""
        names = self._names(model)
        scorer = self._scorer
        if scorer is None or scorer.model is not model or self._loader is not dataloader:
            data = dataloader
            if self.per_class is not None:
                subset = balanced_subset(dataloader.dataset, self.per_class)
                data = DataLoader(subset, dataloader.batch_size)
            scorer = Scorer(model, data, self._criterion, include=names, **self._options)
            self._scorer, self._loader = scorer, dataloader
        return scorer, names

    def _names(self, model: nn.Module) -> list[str]:
        known = {id(parameter): name for name, parameter in named_weights(unwrapped(model))}
        names = []
        for _, parameter in self.masked_parameters:
            name = known.get(id(parameter), "")
            if not name:
                raise PxfastError(
                    f"masked_parameters: one of shape {list(parameter.shape)} is no parameter of "
                    f"this model. Make the pruner from the model that it scores"
                )
            names.append(name)
        return names

    def _named(self, names: list[str]) -> Iterator[tuple[str, Pair]]:
        return zip(names, self.masked_parameters, strict=True)

    def _keep_exactly(self, pairs: list[Pair], sparsity: float) -> None:
        scores = Scores({str(i): self.scores[id(p)] for i, (_, p) in enumerate(pairs)})
        alive = {str(i): mask != 0 for i, (mask, _) in enumerate(pairs)}
        left = sum(int(mask.count_nonzero()) for mask in alive.values()) / scores.total
        if left == 0:
            return
        kept = scores.masks(density=min(sparsity, left), masks=alive)
        for i, (mask, _) in enumerate(pairs):
            mask.copy_(kept[str(i)])

    def _keep_above(self, pairs: list[Pair], sparsity: float) -> None:
        flat = torch.cat([self.scores[id(p)].flatten() for _, p in pairs])
        removed = int((1 - sparsity) * flat.numel())
        if removed > 0:
            threshold = flat.kthvalue(removed).values
            for mask, parameter in pairs:
                mask.copy_((self.scores[id(parameter)] > threshold) & (mask != 0))
