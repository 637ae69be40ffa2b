"""GraSP: gradient signal preservation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pxfast.batches import progress_bar
from pxfast.criteria.functional import Functional, Statistics, functional
from pxfast.criteria.labels import Loss, add_, labelled, mean_loss
from pxfast.errors import DataError
from pxfast.paths.outputs import Select
from pxfast.preparation import Choice
from pxfast.rng import preserved_rng
from pxfast.selection.scores import Scores


@dataclass(frozen=True)
class GraSP:
    """How much of the gradient's norm is lost without a weight: S_j = θ_j (H g)_j.

    g and H are gradient and Hessian, by the prunable weights, of the mean loss over all samples, of
    logits divided by a temperature. The paper's score is S(−θ) = −θ ⊙ Hg, of which it removes the
    highest; here a high score means keep, so the sign is the opposite one. Scores may be negative:
    a one-shot ``scores.masks(...)`` of a masked network has to be given the masks again, as
    `pxfast.prune` does. Needs labels, and reads the data twice.

    Source: Wang, Zhang, Grosse, "Picking Winning Tickets Before Training by Preserving Gradient
    Flow", ICLR 2020, arXiv 2002.07376, section 4; the temperature is that of the authors' code.

    Args:
        temperature: Divides the logits; 200 in the authors' code.
        loss: Of logits and labels, the mean over the samples.
        batchnorm: What BatchNorm normalises with: the statistics of the ``"data"``, batch by
            batch, as in the authors' code, or its ``"running"`` ones. At initialisation these do
            not fit, and the scores of a deep network are much worse.
    """

    name: ClassVar[str] = "grasp"
    rounds: ClassVar[int] = 1
    temperature: float = 200.0
    loss: Loss = F.cross_entropy
    batchnorm: Statistics = "data"

    def score(
        self,
        model: nn.Module,
        data: Any,
        *,
        masks: Mapping[str, Tensor] | None = None,
        include: Choice = None,
        exclude: Choice = None,
        output: Select = None,
        progress: bool | None = None,
    ) -> Scores:
        """Scores every prunable weight; see `Criterion`.

        Raises:
            DataError: If the data have no labels or can be read only once, or the loss cannot be
                computed.
        """
        if isinstance(data, Iterator):
            raise DataError(
                f"{self.name} reads the data twice, but got a {type(data).__name__}, which can be "
                f"read only once: give a DataLoader or a list of batches"
            )
        with functional(
            model, data, masks, include, exclude, output, batchnorm=self.batchnorm
        ) as network:
            leaves = network.leaves()
            gradient: dict[str, Tensor] = {}
            samples = 0
            with preserved_rng(data):  # the second pass sees the same batches
                for size, loss in self._losses(network, leaves, data, progress):
                    add_(gradient, network.gradients(size * loss, leaves))
                    samples += size
            gradient = {name: g / samples for name, g in gradient.items()}

            product = {name: torch.zeros_like(g) for name, g in gradient.items()}
            for size, loss in self._losses(network, leaves, data, progress):
                again = network.gradients(size / samples * loss, leaves, create_graph=True)
                inner = sum((gradient[name] * g).sum() for name, g in again.items())
                if isinstance(inner, Tensor):
                    add_(product, network.gradients(inner, leaves))
            scores = {name: leaves[name] * hg for name, hg in product.items()}
            return network.scores(
                scores,
                self.name,
                temperature=self.temperature,
                batchnorm=self.batchnorm,
                samples=samples,
            )

    def _losses(
        self, network: Functional, leaves: Mapping[str, Tensor], data: Any, progress: bool | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Size and mean loss of each batch."""
        stream = labelled(progress_bar(data, self.name, progress), self.name)
        for number, (batch, labels) in enumerate(stream, start=1):
            batch = network.prepared(batch, number)
            loss = mean_loss(
                network,
                self.loss,
                leaves,
                batch,
                labels,
                number=number,
                temperature=self.temperature,
            )
            yield batch.size, loss
