"""Normalisation layers.

The statistics belong to the data (h, J), the learned scale γ to the weights (g, J). BatchNorm in
evaluation is a fixed scale γ²/(σ²+ε) and counts as a weight; every other norm divides by the σ of a
sample (or batch), which is a gate. Centring and β start no path.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.paths.network import Network
from pxfast.paths.registry import rule
from pxfast.paths.rules.sparse import then_batch_norm


@rule(F.batch_norm, torch.batch_norm)
def batch_norm(
    network: Network,
    func: Any,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    """Per channel: h × 1 (data statistics: × 1/(σ²+ε)), g × γ²/(σ²+ε) (data statistics: × γ²)."""
    if func is torch.batch_norm:  # its order of arguments is another
        running_mean, running_var, weight, bias = (
            weight,
            bias,
            running_mean,
            running_var,
        )
    if network.batchnorm == "data" or running_var is None or training:
        value = (
            input.value
        )  # one sample, whose own statistics mean nothing, where gates do not count
        if network.gates:
            value = network.entrywise(F.batch_norm, input, None, None, weight, bias, True, 0.0, eps)
        dims = [0, *range(2, input.value.dim())]
        network.coupled = True
        path = network.gated(input, lambda: 1 / (_variance(network, input.value, dims) + eps))
        return network.tensor(
            value,
            network.scaled(path, lambda: _per_channel(_square(network, weight), input)),
        )
    result = then_batch_norm(network, input, running_mean, running_var, weight, bias, eps)
    if result is not None:
        return result
    value = network.entrywise(
        F.batch_norm, input, running_mean, running_var, weight, bias, False, 0.0, eps
    )

    def squared_scale() -> Tensor | float:
        return _per_channel(
            _square(network, weight) / (network.like_path(running_var) + eps), input
        )

    return network.tensor(value, network.scaled(input.path, squared_scale))


@rule(F.layer_norm, torch.layer_norm)
def layer_norm(
    network: Network, func: Any, input: Any, normalized_shape: Any, weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5, *_: Any,
) -> Any:  # fmt: skip
    """Over the last dimensions: h × 1/(σ²+ε) of the sample, g × γ²."""
    plain = network.values and network.autocast is None and input.value.dtype is network.dtype
    if plain and network.gates and input.path is not None:  # torch's own kernel finds 1/√(σ²+ε)
        value, _, inverse = network.value(
            torch.native_layer_norm, input, normalized_shape, weight, bias, eps
        )
        path = network.gated(input, inverse.square)
    else:
        value = network.entrywise(func, input, normalized_shape, weight, bias, eps)
        dims = list(range(-len(normalized_shape), 0))
        path = network.gated(input, lambda: 1 / (_variance(network, input.value, dims) + eps))
    return network.tensor(value, network.scaled(path, lambda: _square(network, weight)))


@rule(F.rms_norm, torch.rms_norm)
def rms_norm(
    network: Network,
    func: Any,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    eps: float | None = None,
) -> Any:
    """As layer_norm, with σ² = mean(x²)."""
    value = network.entrywise(func, input, normalized_shape, weight, eps)
    dims = list(range(-len(normalized_shape), 0))
    epsilon = torch.finfo(input.value.dtype).eps if eps is None else eps

    def squared_gate() -> Tensor:
        return 1 / (input.value.to(network.dtype).square().mean(dims, keepdim=True) + epsilon)

    path = network.gated(input, squared_gate)
    return network.tensor(value, network.scaled(path, lambda: _square(network, weight)))


@rule(F.group_norm, torch.group_norm)
def group_norm(
    network: Network, func: Any, input: Any, num_groups: int, weight: Any = None, bias: Any = None,
    eps: float = 1e-5, *_: Any,
) -> Any:  # fmt: skip
    """Over the channels of a group and space: h × 1/(σ²+ε) of the sample, g × γ²."""
    value = network.entrywise(func, input, num_groups, weight, bias, eps)
    channels = input.value.shape[1]

    def squared_gate() -> Tensor:
        groups = input.value.unflatten(1, (num_groups, channels // num_groups))
        variance = _variance(network, groups, list(range(2, groups.dim())))
        return 1 / (variance + eps).expand(
            -1, -1, channels // num_groups, *[1] * (groups.dim() - 3)
        ).flatten(1, 2)

    path = network.gated(input, squared_gate)
    return network.tensor(
        value,
        network.scaled(path, lambda: _per_channel(_square(network, weight), input)),
    )


@rule(F.instance_norm, torch.instance_norm)
def instance_norm(
    network: Network, func: Any, input: Any, running_mean: Any = None, running_var: Any = None,
    weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
    *_: Any,
) -> Any:  # fmt: skip
    """Over space: h × 1/(σ²+ε) of the sample, g × γ². With running statistics it is a BatchNorm in
    evaluation; the data's are those of the sample."""
    if func is torch.instance_norm:
        running_mean, running_var, weight, bias = (
            weight,
            bias,
            running_mean,
            running_var,
        )
    if not use_input_stats and network.batchnorm == "running":
        return batch_norm(
            network,
            F.batch_norm,
            input,
            running_mean,
            running_var,
            weight,
            bias,
            False,
            momentum,
            eps,
        )
    value = network.entrywise(F.instance_norm, input, None, None, weight, bias, True, 0.0, eps)
    dims = list(range(2, input.value.dim()))
    path = network.gated(input, lambda: 1 / (_variance(network, input.value, dims) + eps))
    return network.tensor(
        value,
        network.scaled(path, lambda: _per_channel(_square(network, weight), input)),
    )


@rule(F.local_response_norm)
def local_response_norm(
    network: Network,
    func: Any,
    input: Any,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Any:
    """x / (k + α·mean of squares of neighbouring channels)^β: a gate."""
    value = network.entrywise(func, input, size, alpha, beta, k)

    def squared_gate() -> Tensor:
        z = input.value.to(network.dtype)
        squares = F.pad(z.square().flatten(2).unsqueeze(1), (0, 0, size // 2, (size - 1) // 2))
        mean = F.avg_pool2d(squares, (size, 1), stride=1).squeeze(1).reshape(z.shape)
        return (k + alpha * mean) ** (-2 * beta)

    return network.tensor(value, network.gated(input, squared_gate))


def _variance(network: Network, z: Tensor, dims: list[int]) -> Tensor:
    """Biased variance over ``dims``, kept with size 1, computed in the dtype of path sums."""
    return torch.var(z.to(network.dtype), dims, correction=0, keepdim=True)


def _square(network: Network, scale: Tensor | None) -> Tensor | float:
    return 1.0 if scale is None else network.like_path(scale).square()


def _per_channel(factor: Tensor | float, x: Any) -> Tensor | float:
    """A factor per channel, shaped to multiply [N, C, *space]."""
    if not isinstance(factor, Tensor) or math.prod(factor.shape) == 1:
        return factor
    return factor.reshape(-1, *[1] * (x.value.dim() - 2))
