"""SNIP: connection sensitivity of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pxfast.batches import progress_bar
from pxfast.criteria.functional import Statistics, functional
from pxfast.criteria.labels import Loss, add_, labelled, mean_loss
from pxfast.paths.outputs import Select
from pxfast.preparation import Choice
from pxfast.selection.scores import Scores


@dataclass(frozen=True)
class SNIP:
    """How much the loss depends on whether a weight is there: S_j = |g_j θ_j| / Σ_k |g_k θ_k|.

    g = ∂L/∂(θ·M) is the gradient of the mean loss over all samples, so g_j θ_j is the derivative by
    the weight's mask. Needs labels.

    Source: Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", ICLR 2019, arXiv 1810.02340, section 4.

    Args:
        loss: Of outputs and labels, the mean over the samples.
        batchnorm: What BatchNorm normalises with: the statistics of the ``"data"``, batch by
            batch, as in the authors' code, or its ``"running"`` ones.
    """

    name: ClassVar[str] = "snip"
    rounds: ClassVar[int] = 1
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
            DataError: If the data have no labels, or the loss cannot be computed.
        """
        with functional(
            model, data, masks, include, exclude, output, batchnorm=self.batchnorm
        ) as network:
            leaves = network.leaves()
            gradient: dict[str, Tensor] = {}
            samples = 0
            stream = labelled(progress_bar(data, self.name, progress), self.name)
            for number, (batch, labels) in enumerate(stream, start=1):
                batch = network.prepared(batch, number)
                loss = mean_loss(network, self.loss, leaves, batch, labels, number=number)
                add_(gradient, network.gradients(batch.size * loss, leaves))
                samples += batch.size
            sensitivity = {name: (g * leaves[name]).abs() for name, g in gradient.items()}
            total = sum(s.sum(dtype=torch.float64) for s in sensitivity.values())
            scores = {name: s / total if total else s for name, s in sensitivity.items()}
            return network.scores(scores, self.name, batchnorm=self.batchnorm, samples=samples)
