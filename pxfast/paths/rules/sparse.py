"""Linear layers and convolutions of which a mask keeps few weights: value and path in one pass."""

from __future__ import annotations

from typing import Any

from pxfast import ops
from pxfast.paths.network import Network
from pxfast.paths.pathsum import PathSum, Runs
from pxfast.paths.rules.geometry import Convolution
from pxfast.paths.rules.squared import SquaredConvolution
from pxfast.paths.weight import Weight


def sparse_linear_pays(network: Network, x: Any, weight: Weight) -> bool:
    """Whether value and path (of h) had better go through the few kept weights in one pass; a path
    sum that is constant along a dimension costs too little by itself."""
    return (
        weight.mask is not None
        and x.path is not None
        and not isinstance(x.path, Runs)
        and network.gates
        and network.values
        and not network.squares
        and network.autocast is None
        and x.path.shape == x.value.shape
        and network.dtype == x.value.dtype
        and weight.weights.purpose in ("scores", "bound")
        and ops.sparse_dual_linear_pays(x.value, weight.theta, weight.density())
    )


def sparse_linear(network: Network, x: Any, weight: Weight, bias: Any) -> Any:
    """y = x (θ·M)ᵀ + b, with the path through M in the same pass."""
    assert weight.mask is not None
    value, paths = ops.sparse_dual_linear(
        x.value, x.path.mantissa, weight.theta, weight.mask, None if bias is None else bias.detach()
    )
    return network.tensor(value, PathSum(paths, x.path.exponent).normalised())


def sparse_convolution_pays(
    network: Network, x: Any, weight: Weight, geometry: Convolution
) -> bool:
    """Whether value and path had better go through the few kept weights in one pass."""
    return (
        weight.mask is not None
        and x.path is not None
        and network.gates
        and network.values
        and network.autocast is None
        and x.value.dim() == weight.theta.dim() == 4
        and geometry.groups == 1
        and weight.theta.numel() > 0
        and x.value.is_contiguous()
        and x.path.mantissa.dtype == x.value.dtype
        and weight.weights.purpose in ("scores", "bound")
        and ops.sparse_dual_conv2d_pays(x.value, weight.theta, weight.density())
    )


def sparse_convolution(
    network: Network, x: Any, weight: Weight, bias: Any, geometry: Convolution
) -> Any:
    """y = x * (θ·M) + b, with the path through M (h) or θ²·M (J) in the same pass."""
    assert weight.mask is not None
    mantissa = x.path.mantissa.detach()
    value, paths = ops.sparse_dual_conv2d(
        x.value, mantissa, weight.theta, weight.mask, None if bias is None else bias.detach(),
        *geometry.arguments[:3], squared=network.squares,
    )  # fmt: skip
    if network.squares:
        mantissa = x.path.widened(x.value.shape, [1, 2, 3])
        paths = SquaredConvolution.apply(mantissa, network.anchor, weight, geometry, paths)
    return network.tensor(value, PathSum(paths, x.path.exponent).normalised())
