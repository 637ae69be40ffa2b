"""Activations: in h and J the path is multiplied by the squared gate of the data, in g every gate
is open.

The gate of φ with φ(0) = 0 is φ(z)/z, computed from z directly (φ'(0) at z = 0); of any other φ it
is φ'(z). The common ones are an op of their own, value and path in one read (`pxfast.ops.gate`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast import ops
from pxfast.errors import NoRuleError
from pxfast.ops._checks import PATH_DTYPE
from pxfast.paths.network import Network
from pxfast.paths.pathsum import Gated, PathSum
from pxfast.paths.registry import STALE, in_place_target, rule, spellings
from pxfast.paths.rules.sparse import then_relu
from pxfast.reference.gate import GATES, divided

Gate = Callable[..., Tensor]
Kind = tuple[str, float, float]  # of the op: its name and its two parameters


def _celu(z: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return torch.where(
        z > 0,
        1.0,
        alpha * divided(torch.expm1(z.clamp(max=0) / alpha), z, 1.0 / alpha),
    )


SELU_SCALE, SELU_ALPHA = (
    1.0507009873554804934193349852946,
    1.6732632423543772848170429916717,
)


def _selu(z: Tensor, inplace: bool = False) -> Tensor:
    return SELU_SCALE * GATES["elu"](z, SELU_ALPHA, 0.0)


def _softshrink(z: Tensor, lambd: float = 0.5) -> Tensor:
    return divided(F.softshrink(z, lambd), z, 0.0)


def _threshold(z: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    if value and threshold >= 0:  # not 0 at 0: the slope
        return (z > threshold).to(z.dtype)
    return torch.where(z > threshold, 1.0, divided(torch.full_like(z, value), z, 0.0))


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Kind:
    return "hardtanh", min_val, max_val


# What the op computes, from the arguments of the torch function.
FUSED: dict[str, Callable[..., Kind]] = {
    "relu": lambda inplace=False: ("relu", 0.0, 0.0),
    "relu6": lambda inplace=False: _hardtanh(0.0, 6.0),
    "hardtanh": _hardtanh,
    "leaky_relu": lambda negative_slope=0.01, inplace=False: ("leaky_relu", negative_slope, 0.0),
    "elu": lambda alpha=1.0, inplace=False: ("elu", alpha, 0.0),
    "gelu": lambda approximate="none": ("gelu_tanh" if approximate == "tanh" else "gelu", 0.0, 0.0),
    "silu": lambda inplace=False: ("silu", 0.0, 0.0),
    "mish": lambda inplace=False: ("mish", 0.0, 0.0),
    "hardswish": lambda inplace=False: ("hardswish", 0.0, 0.0),
    "tanh": lambda: ("tanh", 0.0, 0.0),
    "sigmoid": lambda: ("sigmoid", 0.0, 0.0),
    "hardsigmoid": lambda inplace=False: ("hardsigmoid", 0.0, 0.0),
}
# φ(0) = 0: φ(z)/z
RATIO: dict[str, Gate] = {
    "selu": _selu,
    "celu": _celu,
    "atan": lambda z: divided(torch.atan(z), z, 1.0),
    "sin": lambda z: divided(torch.sin(z), z, 1.0),
    "erf": lambda z: divided(torch.erf(z), z, 2 / torch.pi**0.5),
    "softsign": lambda z: 1 / (1 + z.abs()),
    "tanhshrink": lambda z: 1 - divided(torch.tanh(z), z, 1.0),
    "hardshrink": lambda z, lambd=0.5: (z.abs() > lambd).to(z.dtype),
    "softshrink": _softshrink,
}
# φ(0) ≠ 0: φ'(z)
SLOPE: dict[str, Gate] = {
    "softplus": lambda z, beta=1.0, threshold=20.0: torch.where(
        beta * z > threshold, 1.0, torch.sigmoid(beta * z)
    ),
    "logsigmoid": lambda z: torch.sigmoid(-z),
}


def _gated(name: str, gate: Gate) -> Callable[..., Any]:
    def activation(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        def squared_gate() -> Tensor:
            return gate(input.value.to(network.dtype), *args, **kwargs).square()

        path = network.gated(input, squared_gate, everywhere=True)
        value = network.entrywise(out_of_place(func), input, *args, **_plain(kwargs))
        return network.opened(network.tensor(value, path), name, input)

    return activation


def _fused(name: str, kind_of: Callable[..., Kind]) -> Callable[..., Any]:
    """Value and path by the op, in one read; in place where the model asks for it, unless the
    backward will need z again. Nothing else writes to z: it is saved without its version."""

    def gate(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kind, a, b = kind_of(*args, **kwargs)
        return GATES[kind](z, a, b)

    apart = _gated(name, gate)

    def activation(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        result = then_relu(network, input) if name == "relu" else None
        if result is not None:
            return result
        z, path = input.value, input.path
        if path is None or not network.gates or not _goes_with(z, path.mantissa):
            return apart(network, func, input, *args, **kwargs)
        inplace = in_place_target(func, (input, *args), kwargs) is not None
        inplace = inplace and not network.differentiate
        kind = kind_of(*args, **kwargs)
        z = z if inplace else z.data
        if _sums_suffice(network, z, kind):
            value, gated = summed_gate(z, path, kind, inplace)
        else:
            value, mantissa = ops.gate(z, path.mantissa, *kind, inplace=inplace)
            gated = PathSum(mantissa, path.exponent)
        return network.opened(network.tensor(value, gated), name, input)

    return activation


def _sums_suffice(network: Network, z: Tensor, kind: Kind) -> bool:
    """Whether to sum over channels at once: where no weight is masked, the next layer will most
    likely want no more. Its gate must be told by the value, in case it does."""
    name, slope, _ = kind
    told = name == "relu" or (name == "leaky_relu" and slope > 0)
    several = z.dim() > 2 and z.shape[1] > 1 and z.is_contiguous()
    return told and several and not (network.squares or network.weights.thinned)


def summed_gate(z: Tensor, path: PathSum, kind: Kind, inplace: bool) -> tuple[Tensor, Gated]:
    """The value, and the path of which only the sum over channels is computed."""
    mantissa = path.mantissa
    value, sums = ops.gate(z, mantissa, *kind, inplace=inplace, over_channels=True)
    shape, seen = value.shape, value._version

    def whole() -> Tensor:
        if value._version != seen:
            raise NoRuleError(STALE)
        return ops.gated(value, mantissa, *kind)

    return value, Gated(sums, path.exponent, shape, whole)


def _goes_with(z: Tensor, mantissa: Tensor) -> bool:
    """Whether the op takes the two: not where there are only shapes, or float64 beside float32."""
    return not mantissa.is_meta and PATH_DTYPE.get(z.dtype) == mantissa.dtype


for _name, _kind in FUSED.items():
    rule(*spellings(_name))(_fused(_name, _kind))
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
        lambda: GATES["leaky_relu"](
            input.value.to(network.dtype), (lower + upper) / 2, 0.0
        ).square(),
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
        ratio = divided(y, z, through_zero.to(z.dtype).expand_as(z))
        return torch.where(phi(0.0) == 0, ratio, (y == z).to(z.dtype)).square()

    return network.opened(network.tensor(value, network.gated(input, squared_gate)), "clamp", input)


@rule(
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout,
    torch.dropout_,
)  # fmt: skip
def dropout(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Scored as in evaluation: nothing is dropped."""
    result = network.tensor(input.value, input.path)
    result.opening = input.opening
    return result


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
