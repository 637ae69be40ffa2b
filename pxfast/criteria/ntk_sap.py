"""NTK-SAP: the influence of a weight on the spectrum of the Neural Tangent Kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pxfast.batches import Batch, batches, progress_bar
from pxfast.criteria.functional import Functional, batchnorms, copied, functional, with_inputs
from pxfast.criteria.labels import add_
from pxfast.errors import PxfastError
from pxfast.paths.outputs import Select
from pxfast.preparation import Choice
from pxfast.selection.scores import Scores


@dataclass(frozen=True)
class NTKSAP:
    """How much the trace of the kernel depends on whether a weight is there.

    S_j = |∂/∂M_j E ‖f(Z; θ₀·M) − f(Z; (θ₀ + Δθ)·M)‖²| / (ε² · samples), where Z ~ N(0, I) has the
    shape of the data, Δθ ~ N(0, ε² I) on the prunable weights, and θ₀ is a fresh initialisation for
    every batch. For small ε the expectation is ε² tr Θ. The division changes no ranking.

    The authors initialise their networks anew. Here θ₀ is the model's own weights, shuffled within
    each layer among those that the masks keep: of independent and identically initialised weights,
    any order is as likely. BatchNorm uses the statistics of (θ₀, Z), for both terms, as in the
    authors' code. Only the shapes of the data count. Every mask draws other numbers, so the rounds
    of a pruning run do, too.

    Source: Wang, Li, Sun, "NTK-SAP: Improving neural network pruning by aligning training
    dynamics", ICLR 2023, arXiv 2304.02840.

    Args:
        epsilon: Standard deviation ε of the perturbation.
        draws: Number of (θ₀, Z, Δθ) drawn per batch.
        shuffle: False keeps θ₀ as it is: the fixed-weight kernel, for networks that are trained.
        seed: Of all numbers, which come from a generator of their own.
    """

    name: ClassVar[str] = "ntk-sap"
    rounds: ClassVar[int] = 100
    epsilon: float = 0.01
    draws: int = 1
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise PxfastError(f"NTKSAP: epsilon must be positive, got {self.epsilon}")
        if self.draws < 1:
            raise PxfastError(f"NTKSAP: draws must be at least 1, got {self.draws}")

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
        """Scores every prunable weight; see `Criterion`."""
        with functional(model, data, masks, include, exclude, output) as network:
            removed = sum(int((~mask).sum()) for mask in network.masks.values())
            generator = torch.Generator().manual_seed(self.seed + removed)
            kept = {
                name: network.masked(name, torch.ones_like(network.weights[name])).requires_grad_()
                for name in network.scored
            }
            sums: dict[str, Tensor] = {}
            samples = 0
            for number, batch in enumerate(
                batches(progress_bar(data, self.name, progress)), start=1
            ):
                batch = network.prepared(batch, number)
                for _ in range(self.draws):
                    trace = self._trace(network, kept, batch, number, generator)
                    add_(sums, network.gradients(trace, kept))
                    samples += batch.size
            scores = {name: s.abs() / samples for name, s in sums.items()}
            return network.scores(
                scores,
                self.name,
                epsilon=self.epsilon,
                draws=self.draws,
                shuffle=self.shuffle,
                seed=self.seed,
                samples=samples,
            )

    def _trace(
        self,
        network: Functional,
        kept: Mapping[str, Tensor],
        batch: Batch,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        """‖f(Z; θ₀·M) − f(Z; (θ₀ + Δθ)·M)‖² / ε² of one draw."""

        def normal(like: Tensor) -> Tensor:
            drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype)
            return drawn.to(like.device)

        noise = with_inputs(batch, normal)
        start = {name: self._initial(network, name, generator) for name in kept}
        moved = {name: theta + self.epsilon * normal(theta) for name, theta in start.items()}
        here = {name: theta * kept[name] for name, theta in start.items()}
        there = {name: theta * kept[name] for name, theta in moved.items()}
        buffers = _statistics(network, here, noise, number)
        change = network.outputs(here, noise, number, copied(buffers)) - network.outputs(
            there, noise, number, copied(buffers)
        )
        return (change / self.epsilon).square().sum()

    def _initial(self, network: Functional, name: str, generator: torch.Generator) -> Tensor:
        """θ₀ of a layer: its weights, those that are kept in another order."""
        theta = network.weights[name]
        if not self.shuffle:
            return theta
        mask = network.masks.get(name, torch.ones_like(theta, dtype=torch.bool))
        values = theta[mask]
        order = torch.randperm(len(values), generator=generator).to(values.device)
        return theta.masked_scatter(mask, values[order])


def _statistics(
    network: Functional, weights: Mapping[str, Tensor], batch: Batch, number: int
) -> dict[str, Tensor]:
    """The model's buffers, with the running statistics that this batch alone gives BatchNorm."""
    buffers = copied(network.buffers)
    norms = batchnorms(network.model)
    if not norms:
        return buffers
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
        with torch.no_grad():
            network(weights, batch, number, buffers)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.training, norm.momentum = False, momentum
    return buffers
