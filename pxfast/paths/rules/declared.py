"""as_gate(): the model itself says which factor of a product is the gate."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import wrap_torch_function

from pxfast.paths.network import Network
from pxfast.paths.registry import rule


@wrap_torch_function(lambda x: (x,))
def as_gate(x: Tensor) -> Tensor:
    """Say that a tensor is the gate of the next product it enters: for use in a model's forward.

    Needed only where pxfast asks for it: for products of two tensors that both carry paths, of
    which neither came out of an activation. The other factor is the value; the weights behind the
    gate get scores as a side branch (docs/method.md, "Side branches").

    Args:
        x: a factor, of any shape and dtype; it may be reshaped and scaled on its way.

    Returns:
        The same tensor.

    Example:
        >>> import torch, pxfast
        >>> from torch import nn
        >>> class Modulated(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate, self.value, self.head = (nn.Linear(4, 4) for _ in range(3))
        ...     def forward(self, x):
        ...         return self.head(pxfast.as_gate(self.gate(x)) * self.value(x))
        >>> scores = pxfast.score(Modulated(), torch.randn(8, 4))
        >>> [round(total, 4) for total in scores.totals().values()]
        [1.0, 1.0, 1.0]
    """
    return x


@rule(as_gate)
def declared(network: Network, func: Any, x: Any) -> Any:
    """The same path sum, which opens the gate."""
    return network.opened(network.tensor(x.value, x.path), "declared", x)
