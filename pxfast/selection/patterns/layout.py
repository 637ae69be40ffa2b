"""Where the outputs and the inputs of a layer lie in its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from pxfast.selection.patterns.pattern import Pattern
from pxfast.unwrap import unwrapped

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerPattern(Pattern):
    """A pattern of outputs and inputs, [O, C, …] in the weights of linear layers and convolutions.

    Weights of transposed convolutions, [C, O/groups, …], cannot be told from those by their shape:
    `of(model)` notes them.

    Args:
        transposed: Number of groups of every transposed convolution, by the name of its weight.
    """

    transposed: Mapping[str, int] = field(default_factory=dict, kw_only=True, repr=False)

    def of(self, model: nn.Module) -> Pattern:
        """Returns the pattern with the model's transposed convolutions noted."""
        return replace(self, transposed=transposed_convolutions(model))

    def outputs_first(self, name: str, weight: Tensor) -> Tensor:
        """Returns a layer's weight [O, C, …], or such a one as the layer stores it."""
        groups = self.transposed.get(name)
        return weight if groups is None else outputs_swapped(weight, groups)


def transposed_convolutions(model: nn.Module) -> dict[str, int]:
    """Returns the number of groups of each transposed convolution, by the name of its weight."""
    return {
        f"{name}.weight" if name else "weight": module.groups
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, _TRANSPOSED)
    }


def outputs_swapped(weight: Tensor, groups: int) -> Tensor:
    """Swaps outputs and inputs: [C, O/groups, …] to [O, C/groups, …], and back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
