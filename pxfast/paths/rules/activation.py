"""Activations: in h and J the path is multiplied by the squared gate of the data, in g every gate
is open.

The gate of φ with φ(0) = 0 is φ(z)/z, computed from z directly (φ'(0) at z = 0); of any other φ it
is φ'(z).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.paths.network import Network
from pxfast.paths.registry import rule, spellings

Gate = Callable[..., Tensor]


def _divided(numerator: Tensor, z: Tensor, at_zero: float | Tensor) -> Tensor:
    """numerator / z, with its limit where z = 0."""
    zero = z == 0
    limit = at_zero if isinstance(at_zero, Tensor) else torch.full_like(z, at_zero)
    return torch.where(zero, limit, numerator / torch.where(zero, torch.ones_like(z), z))


def _leaky(z: Tensor, slope: float) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, slope))


def _elu(z: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return torch.where(z > 0, 1.0, alpha * _divided(torch.expm1(z.clamp(max=0)), z, 1.0))


def _celu(z: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return torch.where(
        z > 0,
        1.0,
        alpha * _divided(torch.expm1(z.clamp(max=0) / alpha), z, 1.0 / alpha),
    )


SELU_SCALE, SELU_ALPHA = (
    1.0507009873554804934193349852946,
    1.6732632423543772848170429916717,
)


def _selu(z: Tensor, inplace: bool = False) -> Tensor:
    return SELU_SCALE * _elu(z, SELU_ALPHA)


def _gelu(z: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
    return torch.special.ndtr(z)


def _hardtanh(
    z: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    inside = (z > min_val) & (z < max_val)
    if min_val > 0 or max_val < 0:  # not 0 at 0: the slope
        return inside.to(z.dtype)
    return torch.where(inside, 1.0, _divided(z.clamp(min_val, max_val), z, 0.0))


def _softshrink(z: Tensor, lambd: float = 0.5) -> Tensor:
    return _divided(F.softshrink(z, lambd), z, 0.0)


def _threshold(z: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    if value and threshold >= 0:  # not 0 at 0: the slope
        return (z > threshold).to(z.dtype)
    return torch.where(z > threshold, 1.0, _divided(torch.full_like(z, value), z, 0.0))


# φ(0) = 0: φ(z)/z
RATIO: dict[str, Gate] = {
    "relu6": lambda z, inplace=False: _hardtanh(z, 0.0, 6.0),
    "hardtanh": _hardtanh,
    "leaky_relu": lambda z, negative_slope=0.01, inplace=False: _leaky(z, negative_slope),
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "gelu": _gelu,
    "silu": lambda z, inplace=False: torch.sigmoid(z),
    "mish": lambda z, inplace=False: torch.tanh(F.softplus(z)),
    "hardswish": lambda z, inplace=False: F.hardsigmoid(z),
    "tanh": lambda z: _divided(torch.tanh(z), z, 1.0),
    "atan": lambda z: _divided(torch.atan(z), z, 1.0),
    "sin": lambda z: _divided(torch.sin(z), z, 1.0),
    "erf": lambda z: _divided(torch.erf(z), z, 2 / torch.pi**0.5),
    "softsign": lambda z: 1 / (1 + z.abs()),
    "tanhshrink": lambda z: 1 - _divided(torch.tanh(z), z, 1.0),
    "hardshrink": lambda z, lambd=0.5: (z.abs() > lambd).to(z.dtype),
    "softshrink": _softshrink,
}
# φ(0) ≠ 0: φ'(z)
SLOPE: dict[str, Gate] = {
    "sigmoid": lambda z: torch.sigmoid(z) * torch.sigmoid(-z),
    "hardsigmoid": lambda z, inplace=False: ((z > -3) & (z < 3)).to(z.dtype) / 6,
    "softplus": lambda z, beta=1.0, threshold=20.0: torch.where(
        beta * z > threshold, 1.0, torch.sigmoid(beta * z)
    ),
    "logsigmoid": lambda z: torch.sigmoid(-z),
}


@rule(*spellings("relu"))
def relu(network: Network, func: Any, input: Any, inplace: bool = False) -> Any:
    """The gate is open where the output is positive. Computed in place where the model does so."""
    value = network.entrywise(func, input, **({"inplace": True} if inplace else {}))
    path = input.path
    if path is not None and network.gates:
        # One read of value and path, without a tensor of gates between. `data` has a version of its
        # own: an in-place operation of the model that comes later leaves what is saved here alone.
        like = value.data.to(network.dtype)
        path = path.map(lambda m: torch.ops.aten.threshold_backward(m, like, 0))
    return network.opened(network.tensor(value, path), "relu", input)


def _gated(name: str, gate: Gate) -> Callable[..., Any]:
    def activation(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        def squared_gate() -> Tensor:
            return gate(input.value.to(network.dtype), *args, **kwargs).square()

        path = network.gated(input, squared_gate)
        value = network.entrywise(out_of_place(func), input, *args, **_plain(kwargs))
        return network.opened(network.tensor(value, path), name, input)

    return activation


for _name, _gate in {**RATIO, **SLOPE}.items():
    rule(*spellings(_name))(_gated(_name, _gate))


@rule(*spellings("threshold"))
def threshold(
    network: Network,
    func: Any,
    input: Any,
    threshold: float,
    value: float,
    inplace: bool = False,
) -> Any:
    """z where z > threshold, else a constant."""
    path = network.gated(
        input,
        lambda: _threshold(input.value.to(network.dtype), threshold, value).square(),
    )
    result = network.tensor(network.entrywise(F.threshold, input, threshold, value), path)
    return network.opened(result, "threshold", input)


@rule(*spellings("prelu"))
def prelu(network: Network, func: Any, input: Any, weight: Any) -> Any:
    """A learned slope below zero, one for all channels or one per channel. The slope is a gate, not
    a weight."""

    def squared_gate() -> Tensor:
        slope = weight.detach()
        if slope.numel() > 1:
            slope = slope.reshape(-1, *[1] * (input.value.dim() - 2))
        return torch.where(input.value > 0, 1.0, network.like_path(slope)).square()

    path = network.gated(input, squared_gate)
    return network.opened(
        network.tensor(network.entrywise(F.prelu, input, weight), path), "prelu", input
    )


@rule(*spellings("rrelu"))
def rrelu(
    network: Network, func: Any, input: Any, lower: float = 1 / 8, upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Any:  # fmt: skip
    """In evaluation, a leaky ReLU of the mean slope."""
    path = network.gated(
        input,
        lambda: _leaky(input.value.to(network.dtype), (lower + upper) / 2).square(),
    )
    result = network.tensor(network.entrywise(F.rrelu, input, lower, upper, False), path)
    return network.opened(result, "rrelu", input)


@rule(*spellings("clamp", "clip", "clamp_min", "clamp_max"))
def clamp(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """ReLU, ReLU6 and Hardtanh in other words; the slope if the bounds leave 0 out."""
    function = out_of_place(func)
    value = network.entrywise(function, input, *args, **kwargs)

    def squared_gate() -> Tensor:
        z, y = input.value.to(network.dtype), value.to(network.dtype)

        def phi(at: float) -> Tensor:
            point = torch.full([1] * z.dim(), at, dtype=z.dtype, device=z.device)
            return network.value(function, point, *args, **kwargs)

        tiny = torch.finfo(z.dtype).tiny
        through_zero = (phi(tiny) == tiny) & (phi(-tiny) == -tiny)
        ratio = _divided(y, z, through_zero.to(z.dtype).expand_as(z))
        return torch.where(phi(0.0) == 0, ratio, (y == z).to(z.dtype)).square()

    return network.opened(network.tensor(value, network.gated(input, squared_gate)), "clamp", input)


@rule(
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout,
    torch.dropout_,
)  # fmt: skip
def dropout(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Scored as in evaluation: nothing is dropped."""
    return network.tensor(input.value, input.path)


def out_of_place(func: Any) -> Any:
    """The spelling that leaves its input alone (the gate is still to be computed from it)."""
    name = getattr(func, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return func
    for namespace in (Tensor, torch, F):
        if getattr(namespace, name, None) is func or namespace is F:
            return getattr(namespace, name[:-1])
    return func


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "inplace"}
