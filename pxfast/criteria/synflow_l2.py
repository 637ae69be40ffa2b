"""SynFlow-L2: synaptic flow of squared weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pxfast.criteria.synflow import SynFlow


@dataclass(frozen=True)
class SynFlowL2(SynFlow):
    """The squared flow through a weight: S_j = θ_j² ∂R/∂(θ_j²) / R with R = 1ᵀ (Π_l (θ^l)²) 1.

    Everything is as for `SynFlow`, with the square of every entry of the state in the place of its
    absolute value (so BatchNorm scales by γ²/σ²). R is then the path kernel of PX with all gates
    open, which bounds the trace of the Neural Tangent Kernel.

    Source: Gebhart, Saxena, Schrater, "A Unified Paths Perspective for Pruning at Initialization",
    2021, arXiv 2101.10552.
    """

    name: ClassVar[str] = "synflow-l2"

    def positive(self, entry: Tensor) -> Tensor:
        """What stands in the place of an entry of the state."""
        return entry.square()
