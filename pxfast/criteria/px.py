"""Path eXclusion as a criterion among others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from pxfast import scoring
from pxfast.selection.scores import Scores


@dataclass(frozen=True)
class PX:
    """The share of the bound of the kernel's trace that runs through a weight.

    See `pxfast.score` and docs/method.md, section 2.

    Source: Iurada, Ciccone, Tommasi, "Finding Lottery Tickets in Vision Models via Data-driven
    Spectral Foresight Pruning", CVPR 2024, arXiv 2406.01820.
    """

    name: ClassVar[str] = "px"
    rounds: ClassVar[int] = 100

    def score(
        self,
        model: nn.Module,
        data: Any,
        *,
        masks: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> Scores:
        """`pxfast.score` with its options."""
        return scoring.score(model, data, criterion=self.name, masks=masks, **options)


@dataclass(frozen=True)
class PXJoint(PX):
    """PX with weights and data in one sum over paths; pxfast's own, docs/method.md, section 3."""

    name: ClassVar[str] = "px-joint"
