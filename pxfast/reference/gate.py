"""Activations and their gates: the formulas.

The gate of φ with φ(0) = 0 is φ(z)/z, with its limit φ'(0) at z = 0 (ReLU: 0); of any other φ it is
φ'(z). a and b are the activation's parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Formula = Callable[[Tensor, float, float], Tensor]


def gate(
    z: Tensor,
    path: Tensor,
    kind: str,
    a: float = 0.0,
    b: float = 0.0,
    value: Tensor | None = None,
    over_channels: bool = False,
) -> Tensor:
    """value = φ(z), gated = path · gate(z)².

    Args:
        z: what the activation gets, any shape.
        path: broadcastable to z's shape.
        kind: a key of `GATES`.
        a: first parameter of the activation.
        b: second parameter of the activation.
        value: written, unless None; may be z itself.
        over_channels: sum gated over dimension 1.

    Returns:
        gated, z's shape and path's dtype; size 1 in dimension 1 with over_channels.
    """
    gated = path * GATES[kind](z.to(path.dtype), a, b).square()
    if value is not None:
        value.copy_(VALUES[kind](z, a, b))
    return gated.sum(1, keepdim=True) if over_channels else gated


def divided(numerator: Tensor, z: Tensor, at_zero: float | Tensor) -> Tensor:
    """numerator / z, with its limit where z = 0."""
    zero = z == 0
    limit = at_zero if isinstance(at_zero, Tensor) else torch.full_like(z, at_zero)
    return torch.where(zero, limit, numerator / torch.where(zero, torch.ones_like(z), z))


def _hardtanh(z: Tensor, low: float, high: float) -> Tensor:
    inside = (z > low) & (z < high)
    if low > 0 or high < 0:  # not 0 at 0: the slope
        return inside.to(z.dtype)
    return torch.where(inside, 1.0, divided(z.clamp(low, high), z, 0.0))


def _elu(z: Tensor, alpha: float, _: float) -> Tensor:
    return torch.where(z > 0, 1.0, alpha * divided(torch.expm1(z.clamp(max=0)), z, 1.0))


def _gelu(z: Tensor, _a: float, _b: float) -> Tensor:
    """Φ(z) by erfc, which keeps its precision where it is small; torch.special.ndtr does not."""
    return torch.special.erfc(z * -(0.5**0.5)) / 2


def _gelu_tanh(z: Tensor, _a: float, _b: float) -> Tensor:
    """(1 + tanh u)/2 = σ(2u), which keeps its precision where it is small."""
    return torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))


GATES: dict[str, Formula] = {
    "relu": lambda z, a, b: (z > 0).to(z.dtype),
    "hardtanh": _hardtanh,
    "leaky_relu": lambda z, a, b: torch.where(z > 0, torch.ones_like(z), torch.full_like(z, a)),
    "elu": _elu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda z, a, b: torch.sigmoid(z),
    "hardswish": lambda z, a, b: F.hardsigmoid(z),
    "mish": lambda z, a, b: torch.tanh(F.softplus(z)),
    "tanh": lambda z, a, b: divided(torch.tanh(z), z, 1.0),
    "sigmoid": lambda z, a, b: torch.sigmoid(z) * torch.sigmoid(-z),
    "hardsigmoid": lambda z, a, b: ((z > -3) & (z < 3)).to(z.dtype) / 6,
}

VALUES: dict[str, Formula] = {
    "relu": lambda z, a, b: torch.relu(z),
    "hardtanh": lambda z, a, b: F.hardtanh(z, a, b),
    "leaky_relu": lambda z, a, b: F.leaky_relu(z, a),
    "elu": lambda z, a, b: F.elu(z, a),
    "gelu": lambda z, a, b: F.gelu(z),
    "gelu_tanh": lambda z, a, b: F.gelu(z, approximate="tanh"),
    "silu": lambda z, a, b: F.silu(z),
    "hardswish": lambda z, a, b: F.hardswish(z),
    "mish": lambda z, a, b: F.mish(z),
    "tanh": lambda z, a, b: torch.tanh(z),
    "sigmoid": lambda z, a, b: torch.sigmoid(z),
    "hardsigmoid": lambda z, a, b: F.hardsigmoid(z),
}
