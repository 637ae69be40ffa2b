"""Pooling. Max-pooling, and the largest entry along dimensions or of two tensors, follows the entry
that the true network picked (h, J), or opens every path (g)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast import _native, ops
from pxfast.errors import NoRuleError
from pxfast.paths.network import Network
from pxfast.paths.pathsum import PathSum, total
from pxfast.paths.registry import rule, spellings
from pxfast.paths.rules.activation import clamp
from pxfast.paths.rules.arithmetic import path_of, reduced_dims, sum_over
from pxfast.paths.rules.edges import Window, slid

Pool = Callable[..., Tensor]
_CONVOLUTION: dict[int, Pool] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_AVERAGE: dict[int, Pool] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_WITH_INDICES: dict[int, Any] = {
    1: F.max_pool1d_with_indices, 2: F.max_pool2d_with_indices, 3: F.max_pool3d_with_indices,
}  # fmt: skip
_ADAPTIVE_WITH_INDICES: dict[int, Any] = {
    1: F.adaptive_max_pool1d_with_indices,
    2: F.adaptive_max_pool2d_with_indices,
    3: F.adaptive_max_pool3d_with_indices,
}


def _max_pool(dims: int) -> Callable[..., Any]:
    def max_pool(
        network: Network, func: Any, input: Any, kernel_size: Any, stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        arguments = (kernel_size, stride, padding, dilation, ceil_mode)
        both = return_indices or func is _WITH_INDICES[dims]
        if dims == 2 and not both and _pools_in_one_pass(network, input, *arguments[3:]):
            return _pooled_in_one_pass(network, input, kernel_size, stride, padding)
        value, indices = network.value(_WITH_INDICES[dims], input, *arguments)
        if input.path is None:
            path = None
        elif network.gates:
            path = picked(network, input, indices, dims)
        else:
            path = _window_sum(input, value.shape, dims, kernel_size, stride, padding, dilation)
        result = network.tensor(value, path)
        return (result, network.tensor(indices, None)) if both else result

    return max_pool


for _dims, _functions in {
    1: (F.max_pool1d, torch.max_pool1d, F.max_pool1d_with_indices),
    2: (F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices),
    3: (F.max_pool3d, torch.max_pool3d, F.max_pool3d_with_indices),
}.items():
    rule(*_functions)(_max_pool(_dims))


def _pools_in_one_pass(network: Network, x: Any, dilation: Any, ceil_mode: bool) -> bool:
    """Whether the op pools value and path (of h) together."""
    return (
        network.gates
        and network.values
        and not network.squares
        and network.autocast is None
        and not ceil_mode
        and _tuple(dilation, 2) == (1, 1)
        and x.value.dim() == 4
        and x.value.is_contiguous()
        and x.value.device.type == "cpu"
        and _native.problem is None
        and x.path is not None
        and x.path.mantissa.dtype == x.value.dtype
    )


def _pooled_in_one_pass(
    network: Network, x: Any, kernel_size: Any, stride: Any, padding: Any
) -> Any:
    kernel = _tuple(kernel_size, 2)
    stride = kernel if stride is None or stride == [] else _tuple(stride, 2)
    value, paths = ops.dual_max_pool2d(x.value, x.path.mantissa, kernel, stride, _tuple(padding, 2))
    return network.tensor(value, PathSum(paths, x.path.exponent))


def picked(network: Network, x: Any, indices: Tensor, dims: int) -> PathSum:
    """The path sum of the entries that max-pooling picked; ``indices`` count in the flattened
    window dimensions."""
    indices = indices.to(network.path_device)
    lead = indices.shape[: indices.dim() - dims]
    source = x.path.widened(x.value.shape, range(-dims, 0)).flatten(-dims)
    source = source.expand(*lead, -1)
    return PathSum(
        source.gather(-1, indices.flatten(-dims)).reshape(indices.shape),
        x.path.exponent,
    )


def _window_sum(
    x: Any,
    shape: torch.Size,
    dims: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> PathSum:
    """Sum over each window: a convolution with ones, one channel at a time."""
    kernel, padding, dilation = (_tuple(value, dims) for value in (kernel_size, padding, dilation))
    stride = kernel if stride is None or stride == [] else _tuple(stride, dims)
    space, sizes = x.value.shape[-dims:], shape[-dims:]
    extra = [  # ceil_mode: windows that start inside but end beyond the padding
        max(
            0,
            (sizes[i] - 1) * stride[i]
            + dilation[i] * (kernel[i] - 1)
            + 1
            - space[i]
            - 2 * padding[i],
        )
        for i in range(dims)
    ]
    pad = [amount for i in reversed(range(dims)) for amount in (padding[i], padding[i] + extra[i])]

    def sums(mantissa: Tensor) -> Tensor:
        lead = mantissa.shape[:-dims]
        padded = F.pad(mantissa.reshape(-1, 1, *mantissa.shape[-dims:]), pad)
        ones = padded.new_ones((1, 1, *kernel))
        summed = _CONVOLUTION[dims](padded, ones, stride=stride, dilation=dilation)
        summed = summed[(..., *(slice(size) for size in sizes))]
        return summed.reshape(*lead, *summed.shape[-dims:])

    if any(extra):
        return PathSum(sums(x.path.widened(x.value.shape, range(-dims, 0))), x.path.exponent)
    windows = [
        Window(stride[i], padding[i], dilation[i] * (kernel[i] - 1) + 1) for i in range(dims)
    ]
    return slid(x.path, x.value.shape, windows, sums)


def _average_pool(dims: int) -> Callable[..., Any]:
    def average_pool(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        value = network.value(func, input, *args, **kwargs)
        return network.tensor(value, over_space(input, dims, lambda m: func(m, *args, **kwargs)))

    return average_pool


for _dims, _functions in {
    1: (
        F.avg_pool1d,
        torch.avg_pool1d,
        F.adaptive_avg_pool1d,
        torch.adaptive_avg_pool1d,
    ),
    2: (F.avg_pool2d, F.adaptive_avg_pool2d),
    3: (F.avg_pool3d, F.adaptive_avg_pool3d),
}.items():
    rule(*_functions)(_average_pool(_dims))


def over_space(x: Any, dims: int, function: Callable[[Tensor], Tensor]) -> PathSum | None:
    """Apply a linear function of the last ``dims`` dimensions; constant leading dimensions stay
    narrow."""
    if x.path is None:
        return None
    return PathSum(function(x.path.widened(x.value.shape, range(-dims, 0))), x.path.exponent)


def _adaptive_max_pool(dims: int) -> Callable[..., Any]:
    def adaptive_max_pool(
        network: Network,
        func: Any,
        input: Any,
        output_size: Any,
        return_indices: bool = False,
    ) -> Any:
        value, indices = network.value(_ADAPTIVE_WITH_INDICES[dims], input, output_size)
        if input.path is None:
            path = None
        elif network.gates:
            path = picked(network, input, indices, dims)
        else:
            path = _adaptive_window_sum(input, value.shape[-dims:], dims)
        result = network.tensor(value, path)
        both = return_indices or func in (
            _ADAPTIVE_WITH_INDICES[dims], torch.adaptive_max_pool1d
        )  # fmt: skip
        return (result, network.tensor(indices, None)) if both else result

    return adaptive_max_pool


for _dims, _functions in {
    1: (
        F.adaptive_max_pool1d,
        torch.adaptive_max_pool1d,
        F.adaptive_max_pool1d_with_indices,
    ),
    2: (F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices),
    3: (F.adaptive_max_pool3d, F.adaptive_max_pool3d_with_indices),
}.items():
    rule(*_functions)(_adaptive_max_pool(_dims))


def _adaptive_window_sum(x: Any, sizes: torch.Size, dims: int) -> PathSum:
    """Adaptive windows run from floor(i·n/m) to ceil((i+1)·n/m): a 0/1 matrix along each
    dimension."""
    mantissa = x.path.widened(x.value.shape, range(-dims, 0))
    for dim, size in zip(range(-dims, 0), sizes, strict=True):
        n = mantissa.shape[dim]
        windows = mantissa.new_zeros(size, n)
        for i in range(size):
            windows[i, (i * n) // size : math.ceil((i + 1) * n / size)] = 1
        mantissa = (mantissa.transpose(dim, -1) @ windows.T).transpose(dim, -1)
    return PathSum(mantissa, x.path.exponent)


@rule(F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)
def lp_pool(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Norm 1 of non-negative inputs is a sum; other norms have no value path that is linear in one
    entry."""
    norm = args[0] if args else kwargs["norm_type"]
    raise NoRuleError(
        f"{func.__name__} with norm {norm} is not linear along a path and has no rule; use average "
        "or max-pooling"
    )


@rule(*spellings("amax", "amin", "max", "min"))
def extreme(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Max-pooling in other words: over dimensions or everything, or of two tensors.

    As with the mean, subtracting a tensor's own largest entry is centring (a stable softmax).
    """
    other = args[0] if args else kwargs.get("other")
    if isinstance(other, Tensor):
        return extreme_of_two(network, func, input, other)
    value = network.value(func, input, *args, **kwargs)
    entries = value if isinstance(value, Tensor) else value[0]
    path = None
    if input.path is not None:
        dims, keepdim = reduced_dims(input, *args, **kwargs)
        if network.gates:
            path = _picked_along(network, input, dims, keepdim, "max" in func.__name__)
        else:
            path = sum_over(input.path, input.value.shape, dims, keepdim).normalised()
    result = network.tensor(entries, path)
    result.mean_of = weakref.ref(input)
    if isinstance(value, Tensor):
        return result
    return type(value)((result, network.tensor(value[1], None)))


def _picked_along(
    network: Network, x: Any, dims: list[int], keepdim: bool, largest: bool
) -> PathSum:
    """The path sum of the largest (or smallest) entry over the given dimensions."""
    shape = x.value.shape
    kept = [dim for dim in range(len(shape)) if dim not in dims]

    def rows(tensor: Tensor) -> Tensor:
        return tensor.permute(*kept, *dims).reshape(*(shape[dim] for dim in kept), -1)

    values = rows(x.value)
    index = values.argmax(-1, True) if largest else values.argmin(-1, True)
    picked = rows(x.path.widened(shape)).gather(-1, index.to(network.path_device)).squeeze(-1)
    if keepdim:
        picked = picked.reshape([1 if dim in dims else size for dim, size in enumerate(shape)])
    return PathSum(picked, x.path.exponent)


@rule(*spellings("maximum", "minimum", "fmax", "fmin"))
def extreme_of_two(network: Network, func: Any, input: Any, other: Any) -> Any:
    """Of two tensors with paths, the one that was picked (g: both); of a path and a bound, a
    clamp."""
    largest = "max" in func.__name__
    if path_of(input) is None:
        input, other = other, input
    if path_of(input) is None:
        return network.tensor(network.broadcast(func, input, other), None)
    if path_of(other) is None:
        return clamp(network, torch.clamp, input, **{"min" if largest else "max": other})
    value = network.broadcast(func, input, other)
    paths = [input.path, other.path]
    if network.gates:
        first = input.value >= other.value if largest else input.value <= other.value
        first = network.like_path(first)
        paths = [input.path.times(first), other.path.times(~first)]
    return network.tensor(value, total(paths))


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values
