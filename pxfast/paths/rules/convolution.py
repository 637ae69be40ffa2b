"""Convolutions: linear layers whose weights are shared by all positions (linear.py).

Where no mask is, h needs one convolution per group with ones, however many channels there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.paths.network import Network
from pxfast.paths.pathsum import PathSum
from pxfast.paths.registry import rule
from pxfast.paths.rules.edges import slid
from pxfast.paths.rules.geometry import Convolution, Ints
from pxfast.paths.rules.heads import is_attention, mixed_heads
from pxfast.paths.rules.linear import applied
from pxfast.paths.rules.sparse import sparse_convolution, sparse_convolution_pays
from pxfast.paths.rules.squared import SquaredConvolution, note_use
from pxfast.paths.weight import Weight


@rule(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def convolution(
    network: Network,
    func: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Convolution of [N, C, *space] with W [O, C/groups, *kernel]."""
    if is_attention(input) and weight[0, 0].numel() == 1:
        return mixed_heads(network, input, 1, lambda x: convolution(network, func, x, weight, bias))
    used = applied(network, input, weight)
    dims = weight.dim() - 2
    path, shape = input.path, input.value.shape
    arguments = (stride, padding, dilation, groups)
    stride, dilation = _tuple(stride, dims), _tuple(dilation, dims)
    uneven = False
    if isinstance(padding, str):
        both = _both_sides(padding, weight.shape[2:], dilation)
        uneven = any(amount % 2 for amount in both)
        if uneven:
            path, shape = _padded(path, shape, both)
        padding = tuple(0 if uneven else amount // 2 for amount in both)
    geometry = Convolution(stride, _tuple(padding, dims), dilation, False, (0,) * dims, groups)
    if not uneven and sparse_convolution_pays(network, input, used, geometry):
        return sparse_convolution(network, input, used, bias, geometry)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return func(x, weight, bias, *arguments)

    channels = used.channels() if groups == 1 and network.values else None
    run = convolve if channels is None else partial(between, channels, convolve)
    value = network.shaped(
        lambda: geometry.output_shape(shape, weight.shape),
        lambda x, bias: run(x, used.masked(), bias),
        input,
        bias,
    )
    return network.tensor(value, convolution_path(network, path, shape, used, geometry))


@rule(
    F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
)  # fmt: skip
def transposed_convolution(
    network: Network,
    func: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed convolution of [N, C, *space] with W [C, O/groups, *kernel]."""
    used = applied(network, input, weight)
    dims = weight.dim() - 2
    arguments = (stride, padding, output_padding, groups, dilation)
    geometry = Convolution(
        _tuple(stride, dims),
        _tuple(padding, dims),
        _tuple(dilation, dims),
        True,
        _tuple(output_padding, dims),
        groups,
    )
    shape = input.value.shape
    value = network.shaped(
        lambda: geometry.output_shape(shape, weight.shape),
        lambda x, bias: func(x, used.masked(), bias, *arguments),
        input,
        bias,
    )
    return network.tensor(value, convolution_path(network, input.path, shape, used, geometry))


def convolution_path(
    network: Network,
    path: PathSum | None,
    shape: torch.Size,
    weight: Weight,
    geometry: Convolution,
) -> PathSum | None:
    """The path sum behind a convolution whose input has the given full shape."""
    if path is None:
        return None
    if (
        len(path.shape) == weight.theta.dim() - 1
    ):  # torch allows an input without the batch dimension
        batched = PathSum(path.mantissa[None], path.exponent)
        result = convolution_path(network, batched, torch.Size([1, *shape]), weight, geometry)
        return None if result is None else result.map(lambda m: m.squeeze(0))
    space = range(2, len(shape))
    if network.squares:
        return _squared(network, path, shape, weight, geometry).normalised()
    if weight.mask is None:
        return ones_convolution(path, shape, weight.theta.shape, geometry).normalised()
    mantissa = path.widened(shape, [1, *space])
    if geometry.masked_ones_pay(mantissa, weight):
        result = geometry.of_ones(mantissa, weight)
        return PathSum(result, path.exponent).normalised()
    mask = weight.ones(network.dtype, network.path_device)
    if geometry.groups > 1 or geometry.transposed or mask.is_meta:
        channels = None
    else:
        channels = weight.channels()
    if channels is None:
        return PathSum(geometry(mantissa, mask), path.exponent).normalised()

    def convolve(x: Tensor, weight: Tensor, bias: None) -> Tensor:
        return geometry(x, weight)

    return PathSum(between(channels, convolve, mantissa, mask, None), path.exponent).normalised()


def _squared(
    network: Network, path: PathSum, shape: torch.Size, weight: Weight, geometry: Convolution
) -> PathSum:
    """The path sum behind a convolution with θ²·M; in g once for all positions that are alike."""
    note_use(weight, path)
    space = range(2, len(shape))

    def convolve(x: Tensor) -> Tensor:
        x = x.expand(-1, shape[1], *[-1] * len(space))
        return SquaredConvolution.apply(x, network.anchor, weight, geometry, None)  # type: ignore[no-any-return]

    noting = weight.weights.purpose == "structure"  # where cotangents arrive, entry by entry
    if geometry.transposed or (noting and not (_is_constant(path) and geometry.is_even())):
        return PathSum(convolve(path.widened(shape, space)), path.exponent)
    return slid(path, shape, geometry.windows(weight.theta.shape), convolve)


def _is_constant(path: PathSum) -> bool:
    return math.prod(path.shape[2:]) == 1


def between(
    channels: tuple[Tensor, Tensor],
    convolve: Callable[[Tensor, Tensor, Any], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Any,
) -> Tensor:
    """A convolution (groups = 1) of the given input to the given output channels; all other weights
    are 0."""
    inputs, outputs = channels
    channel = x.dim() - weight.dim() + 1
    rest = 0.0 if bias is None else bias.detach().reshape(-1, *[1] * (weight.dim() - 2))
    if not outputs.numel():
        empty = convolve(x.narrow(channel, 0, 1), weight[:1, :1], None)
        shape = list(empty.shape)
        shape[channel] = weight.shape[0]
        return empty.new_zeros(shape) + rest
    kept = weight.index_select(0, outputs).index_select(1, inputs)
    some = convolve(x.index_select(channel, inputs), kept, None)
    shape = list(some.shape)
    shape[channel] = weight.shape[0]
    return some.new_zeros(shape).index_copy_(channel, outputs, some) + rest


def ones_convolution(
    path: PathSum, shape: torch.Size, weight: torch.Size, geometry: Convolution
) -> PathSum:
    """A convolution with weights of one: sum over the group's input channels, then over the window.

    Every output channel of a group is the same, so one channel per group is computed.
    """
    batch, groups, channels, space = path.shape[0], geometry.groups, shape[1], shape[2:]
    if path.shape[1] == 1:  # all channels alike, so all groups are alike, too
        sums = path.mantissa * (channels // groups)
    elif groups == 1:
        sums = path.over_channels()
    elif groups == channels:
        sums = path.mantissa
    else:
        sums = path.mantissa.unflatten(1, (groups, channels // groups)).sum(2)
    kept = sums.shape[1]
    result = geometry.over_window(sums.expand(batch, kept, *space), weight[2:])
    outputs = weight[1] if geometry.transposed else weight[0] // groups  # per group
    if kept > 1 and outputs > 1:
        result = result.repeat_interleave(outputs, dim=1)
    return PathSum(result, path.exponent)


def _tuple(value: Any, dims: int) -> Ints:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values


def _both_sides(padding: str, kernel: torch.Size, dilation: Ints) -> Ints:
    """How many zeros ``"same"`` and ``"valid"`` add to each dimension, before and after it."""
    if padding == "valid":
        return (0,) * len(kernel)
    return tuple(step * (size - 1) for size, step in zip(kernel, dilation, strict=True))


def _padded(
    path: PathSum | None, shape: torch.Size, both: Ints
) -> tuple[PathSum | None, torch.Size]:
    """A path sum, and its full shape, with zeros around it, one more after than before where they
    do not divide by two."""
    lead, space = shape[: -len(both)], shape[-len(both) :]
    if path is not None:
        amounts = [side for amount in reversed(both) for side in (amount // 2, -(-amount // 2))]
        dims = range(len(lead), len(shape))
        path = PathSum(F.pad(path.widened(shape, dims), amounts), path.exponent)
    padded = (size + amount for size, amount in zip(space, both, strict=True))
    return path, torch.Size([*lead, *padded])
