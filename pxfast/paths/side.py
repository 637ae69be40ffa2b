"""Side branches: weights that only shape gates (docs/method.md, "Side branches").

A weight row is a *side row* if no value path leaves it. Its score would be 0, and a global
threshold would delete it first. So every gate g · v has its own sum ℓ, over the path sums that
open the gate, and its side rows get S = θ² ∂ℓ/∂(θ²) · mass/ℓ, where the mass is what flows through
the gated value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pxfast.paths.names import described
from pxfast.paths.opening import Opening
from pxfast.paths.pathsum import Exponent, PathSum, Runs, larger, shifted
from pxfast.paths.weight import Weight
from pxfast.paths.weights import Weights


@dataclass
class Product:
    """One product gate · value of a pass: ℓ, and the mass that the main backward measures."""

    opening: PathSum  # ℓ, a scalar
    mass: Tensor
    module: nn.Module | None = None  # where it is
    used: bool = False  # whether a path leads on from it to the output

    @classmethod
    def of(cls, opening: Opening, gated: PathSum, weights: Weights) -> tuple[Product, PathSum]:
        """Record a product; returns the gated path sum, whose cotangent measures the mass."""
        if isinstance(gated, Runs):  # the cotangent of what is there once is that of the whole run
            product, once = cls.of(opening, gated.once, weights)
            return product, Runs(once, gated.dim, gated.lengths)
        ell = opening.ell()
        mass = torch.zeros((), dtype=torch.float64, device=ell.mantissa.device)
        product = cls(ell, mass, weights.module())
        value = gated.mantissa
        value = value if value.requires_grad else value.detach().requires_grad_()  # of the input
        mantissa = value.view_as(value)  # a node of its own: other uses of the value do not count
        watched = mantissa.detach()

        def measure(cotangent: Tensor | None) -> None:
            if weights.side is None and cotangent is not None:
                product.used = True
                product.mass += (cotangent * watched).sum(dtype=torch.float64)

        mantissa.register_hook(measure)
        return product, PathSum(mantissa, gated.exponent)


@dataclass
class SideBranch:
    """What the passes over all batches have gathered for one product of the model."""

    exponent: Exponent = 0
    ell: float = 0.0
    mass: float = 0.0
    module: nn.Module | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)

    def gather(self, product: Product, weights: Weights) -> None:
        """Add a pass: its mass, its ℓ and, by a backward from ℓ, the scores of its side rows."""
        if not product.used:  # nor are the weights that shape its gate
            return
        self.mass += float(product.mass)
        self.module = product.module
        ell, exponent = product.opening.mantissa, product.opening.exponent
        value = float(ell.detach())
        if not ell.requires_grad:
            return
        if value == 0:  # a dead branch: its side rows score 0
            exponent = self.exponent
        top = exponent if self.ell == 0 else larger(self.exponent, exponent)
        for buffer in self.scores.values():
            buffer.copy_(shifted(buffer, self.exponent - top))
        self.ell *= 2.0 ** int(self.exponent - top)
        scaled = shifted(ell, exponent - top)
        weights.side = self.scores
        try:
            if leaves := leaves_behind(scaled):  # without, the engine would visit all layers before
                scaled.backward(inputs=leaves, retain_graph=True)
        finally:
            weights.side = None
        self.ell += float(scaled.detach())
        self.exponent = top

    def settle(self, weights: Weights) -> None:
        """Add the scores, scaled so that a cut through the side branch totals the gated mass."""
        share = self.mass / self.ell if self.ell else 0.0
        if not self.ell and self.mass and self.scores and self.module is not None:
            weights.dead.append(described(weights.model, self.module))
        for name, scores in self.scores.items():
            main = weights.saliency.get(name)
            if main is None:
                weights.saliency[name] = scores.mul_(share)
            else:
                main.add_(scores, alpha=share)


def leaves_behind(ell: Tensor) -> list[Tensor]:
    """The anchors (network.py) of the layers with side rows that the backward from ℓ reaches."""
    found: list[Tensor] = []
    todo: list[Any] = [ell.grad_fn]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        behind = [function for function, _ in node.next_functions]
        weight = getattr(node, "weight", None)  # of SquaredLinear and SquaredConvolution
        if isinstance(weight, Weight):
            if not weight.has_side_rows():
                continue
            found.append(behind[1].variable)
            if weight.ends_side_branch():
                continue
        todo += behind
    return found
