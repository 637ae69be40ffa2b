"""SynFlow: synaptic flow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pxfast.batches import batches
from pxfast.criteria.functional import functional, with_inputs
from pxfast.errors import RangeError
from pxfast.paths.outputs import Select
from pxfast.preparation import Choice
from pxfast.selection.scores import Scores


@dataclass(frozen=True)
class SynFlow:
    """The flow through a weight: S_j = |θ_j| ∂R/∂|θ_j| / R with R = 1ᵀ (Π_l |θ^l|) 1.

    R is the sum of the outputs for one input of ones, in evaluation mode and float64 (float32
    overflows in deep networks), of the model with the absolute value of *every* entry of its state:
    biases stay, BatchNorm uses |γ|, |β| and |running mean|. That is what the authors' code does.
    At initialisation it is harmless; trained running means are subtracted from the flow, and can
    stop it. Dividing by R is ours: it changes no ranking and brings the scores into float32's
    range. No data are needed, only the shape of the first batch.

    Source: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively
    conserving synaptic flow", NeurIPS 2020, arXiv 2006.05467, algorithm 1.
    """

    name: ClassVar[str] = "synflow"
    rounds: ClassVar[int] = 100

    def positive(self, entry: Tensor) -> Tensor:
        """What stands in the place of an entry of the state."""
        return entry.abs()

    def score(
        self,
        model: nn.Module,
        data: Any,
        *,
        masks: Mapping[str, Tensor] | None = None,
        include: Choice = None,
        exclude: Choice = None,
        output: Select = None,
    ) -> Scores:
        """Scores every prunable weight; see `Criterion`.

        Raises:
            RangeError: If R is 0 or left the range of float64.
        """
        with functional(
            model, data, masks, include, exclude, output, dtype=torch.float64
        ) as network:
            network = network.mapped(self.positive)
            leaves = network.leaves()
            one = network.prepared(next(batches(data)).samples(0, 1), number=1)
            ones = with_inputs(one, torch.ones_like)
            flow = network.outputs(leaves, ones).sum()
            total = abs(float(flow.detach()))
            self._check(total)
            gradients = network.gradients(flow, leaves)
            scores = {name: (leaves[name] * g / total).abs() for name, g in gradients.items()}
            return network.scores(scores, self.name, log2_R=math.log2(total))

    def _check(self, flow: float) -> None:
        if not math.isfinite(flow):
            raise RangeError(
                f"{self.name}: the flow R = {flow} left the range of float64. Rescale the weights, "
                f"or look for infinite buffers in the model"
            )
        if flow == 0:
            raise RangeError(f"{self.name}: no path reaches the output, R = 0")
