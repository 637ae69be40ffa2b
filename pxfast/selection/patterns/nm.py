"""N of M: the sparsity that tensor cores multiply at twice the speed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pxfast.errors import MaskError
from pxfast.selection.patterns.layout import LayerPattern
from pxfast.selection.patterns.pattern import Units


@dataclass(frozen=True)
class NM(LayerPattern):
    """At most N of every M consecutive inputs of an output are kept: ``NM(2, 4)`` is "2:4".

    In a linear layer's weight [O, K] these are M neighbours in a row, the layout of
    ``torch.sparse.to_sparse_semi_structured``. In a convolution's weight [O, C, kh, kw] they are M
    neighbouring input channels at one kernel position, as TensorRT and NVIDIA's ASP have them: M
    neighbours in a row of the matrix [O, kh · kw · C] that a channels-last convolution multiplies
    (``weight.permute(0, 2, 3, 1).flatten(1)``).

    Layers whose number of inputs is no multiple of M, such as the first convolution of an image
    network and depthwise ones, are left dense and named in a warning; they do not count in the
    density, which is N/M: leave ``density=`` out. If earlier masks have left less than N of a group
    alive, all of these stay. During the rounds of `pxfast.prune` the N best weights of each group
    are safe and all others compete, so that the last round ends at N of M.

    Args:
        n: Weights kept of each group.
        m: Weights in a group.
        transposed: See `LayerPattern`; ``NM(2, 4).of(model)`` fills it in.

    Raises:
        ValueError: Unless 1 <= n < m.

    Example:
        >>> import pxfast
        >>> scores = pxfast.Scores({"fc.weight": torch.tensor([[0.1, 0.4, 0.3, 0.2]])})
        >>> scores.masks(pattern=NM(2, 4))["fc.weight"]
        tensor([[False,  True,  True, False]])
    """

    n: int
    m: int

    noun = "weights"

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("m", self.m)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"NM: {name} must be a whole number, got {value!r}")
        if not 1 <= self.n < self.m:
            raise ValueError(f"NM: 1 <= n < m must hold, got n={self.n}, m={self.m}")

    @property
    def density(self) -> float:  # type: ignore[override]
        """N/M."""
        return self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def left_dense(self, scores: Mapping[str, Tensor]) -> dict[str, str]:
        """Returns the layers whose number of inputs is no multiple of M."""
        return {
            name: f"{self._inputs(name, score)} inputs"
            for name, score in scores.items()
            if not self._fits(name, score)
        }

    def units(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Units:
        """Returns the weights of the layers that fit, with the N best of each group reserved.

        Where less than N of a group are alive, the reserve is filled up with dead weights, and
        these count as alive: so every reserve holds N/M of the weights exactly.
        """
        fitting = {name: score for name, score in scores.items() if self._fits(name, score)}
        if not fitting:
            raise MaskError(
                f"pattern={self} fits no layer: no number of inputs is a multiple of {self.m}"
            )
        reserved = {
            name: self._best(name, score, alive.get(name)) for name, score in fitting.items()
        }
        may_stay = {name: alive[name] | reserved[name] for name in fitting if name in alive}
        return Units(fitting, may_stay, reserved)

    def spread(
        self, kept: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Returns the masks of the layers that fit."""
        del scores
        return kept

    def _inputs(self, name: str, score: Tensor) -> int:
        """Number of inputs of an output, at each kernel position."""
        return self.outputs_first(name, score).shape[1] if score.dim() > 1 else 0

    def _fits(self, name: str, score: Tensor) -> bool:
        inputs = self._inputs(name, score)
        return inputs > 0 and inputs % self.m == 0

    def _best(self, name: str, score: Tensor, alive: Tensor | None) -> Tensor:
        """Returns which weights are the N best of their group: alive, then high, then early."""
        ranked = score if alive is None else score.masked_fill(~alive, -math.inf)
        groups = self.outputs_first(name, ranked).movedim(1, -1).unflatten(-1, (-1, self.m))
        best = _highest(groups, self.n).flatten(-2).movedim(-1, 1)
        return self.outputs_first(name, best).contiguous()


def _highest(groups: Tensor, n: int) -> Tensor:
    """Returns a bool tensor of the n highest of each group [..., M]; of equals the earlier."""
    m = groups.shape[-1]
    higher = torch.zeros(groups.shape, dtype=torch.int16, device=groups.device)
    for early, late in itertools.combinations(range(m), 2):
        late_wins = groups[..., late] > groups[..., early]
        higher[..., early] += late_wins
        higher[..., late] += ~late_wins
    return higher < n
