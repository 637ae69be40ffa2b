"""Linear layers and convolutions: the only operations with weights.

h: the weight is its mask M; where everything is kept, every output is the same sum over inputs
(kept narrow). g and J: the weight is θ²·M, and the backward accumulates the saliency S =
θ²·M·∂R/∂(θ²·M). Biases start no path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast import ops
from pxfast.errors import NoRuleError
from pxfast.paths.network import Network
from pxfast.paths.pathsum import PathSum, Runs
from pxfast.paths.registry import rule
from pxfast.paths.rules.heads import is_attention, mixed_heads
from pxfast.paths.rules.sparse import sparse_linear, sparse_linear_pays
from pxfast.paths.rules.squared import SquaredConvolution, SquaredLinear, note_use
from pxfast.paths.shapes import convolution_shape
from pxfast.paths.weights import Weight

Ints = tuple[int, ...]


@rule(F.linear)
def linear(network: Network, func: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    """y = x Wᵀ + b."""
    if is_attention(input) and weight.shape[0] == weight.shape[1]:
        return mixed_heads(network, input, -1, lambda x: linear(network, func, x, weight, bias))
    used = applied(network, input, weight)
    if sparse_linear_pays(network, input, used):
        return sparse_linear(network, input, used, bias)
    value = network.shaped(
        lambda: (*input.value.shape[:-1], weight.shape[0]),
        lambda x, bias: row_by_row(x, used, used.masked_rows, bias),
        input,
        bias,
    )
    return network.tensor(value, linear_path(network, input, used))


def applied(network: Network, x: Any, weight: Any) -> Weight:
    """The weight that is applied to x, which must not have lost its path on the way."""
    used = network.weights(weight)
    if x.path is None and x.ended is not None and used.source is not None:
        raise NoRuleError(
            f"{x.ended} makes a gate tensor, which carries no path, but its result reaches the "
            f"weight {used.source.name} (in {network.weights.where()}), whose paths would be lost. "
            f"If it is an activation there, put it into a function of its own and register a rule "
            "for that with pxfast.rule."
        )
    return used


def linear_path(network: Network, x: Any, weight: Weight) -> PathSum | None:
    """The path sum behind x Wᵀ, for W of shape [O, K] and x [..., K]."""
    return None if x.path is None else _through(network, x.path, weight)


def _through(network: Network, path: PathSum, weight: Weight) -> PathSum:
    inputs = weight.theta.shape[-1]
    if isinstance(path, Runs) and path.dim < len(path.shape) - 1:
        return path.through(lambda once: _through(network, once, weight))
    if network.squares:
        note_use(weight, path)
        mantissa = path.mantissa.expand(*path.shape[:-1], inputs)
        paths = SquaredLinear.apply(mantissa, network.anchor, weight)
        return PathSum(paths, path.exponent).normalised()
    mask = weight.mask
    if mask is None:
        return summed(path, -1, inputs).normalised()
    if path.mantissa.is_meta:
        return path.map(lambda m: F.linear(m, m.new_empty(mask.shape)))
    if path.shape[-1] == 1:  # every input has the same sum: how many are kept counts
        return path.map(lambda m: m * mask.sum(-1)).normalised()
    if ops.masked_ones_pays(path.mantissa, len(mask)):
        return path.map(lambda m: ops.masked_ones_linear(m, weight.bits())).normalised()
    return path.map(lambda m: row_by_row(m, weight, weight.mask_rows)).normalised()


MASKED_BYTES = 4 * 2**20  # of a matrix θ·M or M that is made at a time: it stays in the cache
MANY_TOKENS = 128  # from there on the product, not making the matrix, takes the time: made whole


def row_by_row(
    x: Tensor, weight: Weight, rows: Callable[[int, int], Tensor], bias: Tensor | None = None
) -> Tensor:
    """x Aᵀ + b for a matrix A made of a masked weight, as many rows at a time as suit a CPU."""
    count, inputs = weight.theta.shape
    step = count
    few = x.numel() < MANY_TOKENS * inputs
    if weight.mask is not None and x.device.type == "cpu" and few:
        step = max(1, MASKED_BYTES // max(1, 4 * inputs))
    if step >= count:
        return F.linear(x, rows(0, count), bias)
    cuts = [(begin, min(begin + step, count)) for begin in range(0, count, step)]
    parts = [F.linear(x, rows(*cut), None if bias is None else bias[slice(*cut)]) for cut in cuts]
    return torch.cat(parts, -1)


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
    if not uneven and sparse_pays(network, input, used, geometry):
        return sparse_convolution(network, input, used, bias, geometry)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return func(x, weight, bias, *arguments)

    channels = used.channels() if groups == 1 and network.values else None
    value = network.shaped(
        lambda: geometry.output_shape(shape, weight.shape),
        convolve if channels is None else partial(between, channels, convolve),
        input,
        used.masked(),
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
        func,
        input,
        used.masked(),
        bias,
        *arguments,
    )
    return network.tensor(value, convolution_path(network, input.path, shape, used, geometry))


def sparse_pays(network: Network, x: Any, weight: Weight, geometry: Convolution) -> bool:
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


class Convolution:
    """The geometry of a convolution: everything but its weight."""

    def __init__(
        self,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        transposed: bool,
        output_padding: Ints,
        groups: int,
    ):
        self.arguments = (stride, padding, dilation, transposed, output_padding)
        self.transposed = transposed
        self.groups = groups

    def output_shape(self, shape: torch.Size, weight: torch.Size) -> tuple[int, ...]:
        """[N, O, *space] (or without N) for an input and a weight of the given shapes."""
        return convolution_shape(shape, weight, *self.arguments, self.groups)

    def squared_backward_pays(self, dy: Tensor, x: Tensor, weight: Weight) -> bool:
        """Whether ops.squared_conv2d_backward had better add the scores of this convolution."""
        return (
            not self.transposed
            and x.dim() == weight.theta.dim() == 4
            and weight.weights.purpose == "scores"
            and ops.squared_conv2d_pays(dy, x, weight.theta, self.groups)
        )

    def masked_ones_pay(self, x: Tensor, weight: Weight) -> bool:
        """Whether path sums of the data pass had better go through the bits of the mask."""
        return (
            not self.transposed
            and x.dim() == weight.theta.dim() == 4
            and ops.masked_ones_pays(x, weight.theta.shape[0] // self.groups)
        )

    def of_ones(self, x: Tensor, weight: Weight) -> Tensor:
        """Convolve [N, C, H, W] with the mask."""
        kernel, geometry = weight.theta.shape[2:], self.arguments[:3]
        return ops.masked_ones_conv2d(x, weight.bits(), kernel, *geometry, groups=self.groups)

    def is_even(self) -> bool:
        """Whether every position sees a whole window, so that alike inputs make alike outputs."""
        _, padding, _, transposed, _ = self.arguments
        return not transposed and not any(padding)

    def reach(self, weight: torch.Size) -> tuple[int, ...]:
        """The extent of one window."""
        dilation = self.arguments[2]
        sizes = zip(dilation, weight[2:], strict=True)
        return tuple(step * (size - 1) + 1 for step, size in sizes)

    def over_window(self, x: Tensor, kernel: Ints) -> Tensor:
        """The sum over the window of a kernel, channel by channel of [N, C, *space]."""
        stride, padding, _, transposed, _ = self.arguments
        if not transposed and not any(padding) and math.prod(kernel) == 1:
            return x[(..., *(slice(None, None, step) for step in stride))]
        channels = x.shape[1]
        return self(x, x.new_ones((channels, 1, *kernel)), groups=channels)

    def __call__(self, x: Tensor, weight: Tensor, groups: int | None = None) -> Tensor:
        """Convolve [N, C, *space] without a bias."""
        return torch.convolution(
            x, weight, None, *self.arguments, self.groups if groups is None else groups
        )


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
        note_use(weight, path)
        mantissa = path.widened(shape, [1, *space])
        if path.mantissa[0, 0].numel() == 1 and geometry.is_even():  # all positions are alike
            mantissa = path.widened(shape, [1]).expand(-1, -1, *geometry.reach(weight.theta.shape))
        result = SquaredConvolution.apply(mantissa, network.anchor, weight, geometry, None)
        return PathSum(result, path.exponent).normalised()
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


def summed(path: PathSum, dim: int, size: int) -> PathSum:
    """Sum over one dimension of the given full size, kept with size 1; a constant dimension is a
    multiplication."""
    if path.mantissa.shape[dim] == 1:
        return path.times(float(size))
    return path.map(lambda m: m.sum(dim, keepdim=True))


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
