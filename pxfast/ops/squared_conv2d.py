"""A convolution as path sums see it: every weight squared, biases dropped (docs/method.md).

Dimensions: N samples, C channels, O outputs, a kernel [h, w]. Path sums are float64 where the
weight is, and float32 otherwise (float32, bfloat16 and float16 weights). Arguments may have any
strides; one that is not contiguous is copied first. csrc/squared_conv2d.h is the kernels' contract.

The kernels of a CPU are made for small maps and skip what the mask removes; where maps are large or
most weights kept, torch's convolutions are the better choice there (`squared_conv2d_pays`), or, for
a large weight, a backward through the columns of the input (`squared_conv2d_backward_by_columns`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast import _native
from pxfast.ops._checks import (
    FLOATS,
    check_dtype,
    check_mask,
    check_path,
    check_weight_shape,
    out_sizes,
    pair,
)
from pxfast.ops._declare import declare
from pxfast.ops.squared_linear import squared_linear_backward
from pxfast.reference import squared_conv2d as reference

_SPARSE, _SPARSE_MAP = 0.4, 256  # density and positions of the output up to which kernels pay
_SMALL_MAP = 49  # positions up to which the columns are faster than torch's backward on a CPU
_LARGE_WEIGHT = 2**21  # entries of the weight from which they are


def squared_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """y = conv2d(x, W∘W∘M).

    Not differentiable: scoring takes `squared_conv2d_backward`.

    Args:
        x: path sums [N, C, H, W], float32 (float64 for a float64 weight).
        weight: W [O, C/groups, h, w], float32, float64, bfloat16 or float16.
        mask: M, weight's shape, bool; False removes a weight, whatever it holds. None keeps all.
        stride: of height and width, or one for both; at least 1.
        padding: of zeros around height and width, or one for both.
        dilation: of height and width, or one for both; at least 1.
        groups: that the channels are parted into.

    Returns:
        y [N, O, H', W'], x's dtype.

    Raises:
        ValueError: shapes, dtypes, devices or integers do not fit; the message names the argument,
            what was expected and what came.

    Example:
        >>> x, weight = torch.ones(1, 1, 1, 3), torch.tensor([[[[1.0, 2.0]]]])
        >>> squared_conv2d(x, weight)
        tensor([[[[5., 5.]]]])
    """
    geometry = pair(stride), pair(padding), pair(dilation), groups
    return torch.ops.pxfast.squared_conv2d(x, weight, mask, *geometry)


def squared_conv2d_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    saliency: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    with_dx: bool = True,
    add: bool = True,
) -> Tensor:
    """dx = conv_transpose2d(dy, W∘W∘M), and saliency += dW∘W∘W∘M.

    dW is what the gradient by the squared weight would be, so that with dy = ∂R/∂y this adds
    S = θ² ∂R/∂(θ²). Not differentiable.

    Args:
        dy: cotangent of y [N, O, H', W'], x's dtype.
        x: path sums [N, C, H, W] that the forward got.
        weight: W [O, C/groups, h, w].
        mask: M, weight's shape, bool, or None.
        saliency: S, weight's shape, x's dtype; added to in place. A masked weight adds exactly 0.
        stride: of height and width, or one for both; at least 1.
        padding: of zeros around height and width, or one for both.
        dilation: of height and width, or one for both; at least 1.
        groups: that the channels are parted into.
        with_dx: False where dx is not needed.
        add: False writes S instead, whatever `saliency` holds.

    Returns:
        dx [N, C, H, W], x's dtype; an empty tensor where `with_dx` is False.

    Raises:
        ValueError: as `squared_conv2d`.
    """
    geometry = pair(stride), pair(padding), pair(dilation), groups
    return torch.ops.pxfast.squared_conv2d_backward(
        dy, x, weight, mask, saliency, *geometry, with_dx, add
    )


def squared_conv2d_backward_by_columns(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    saliency: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    with_dx: bool = True,
    add: bool = True,
) -> Tensor:
    """`squared_conv2d_backward` of one group, as `squared_linear_backward` of the input's columns:
    neither θ² nor its gradient is made."""
    settings = [tuple(pair) for pair in (dilation, padding, stride)]
    kernel = tuple(weight.shape[2:])
    columns = F.unfold(x, kernel, *settings).mT
    flat = None if mask is None else mask.flatten(1)
    sums = saliency.view(saliency.shape[0], -1) if saliency.is_contiguous() else saliency.flatten(1)
    dcolumns = squared_linear_backward(
        dy.flatten(2).mT, columns, weight.flatten(1), flat, sums, with_dx, add
    )
    if not saliency.is_contiguous():
        saliency.copy_(sums.view_as(saliency))
    if not with_dx:
        return x.new_empty(0)
    return F.fold(dcolumns.mT, tuple(x.shape[2:]), kernel, *settings)


Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]


def _checked(
    op: str, x: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry
) -> list[int]:
    """The shape of y. ValueError unless the arguments fit."""
    stride, padding, dilation, groups = geometry
    if weight.dim() != 4:
        raise ValueError(
            f"{op}: weight must have shape [O, C/groups, h, w], got {list(weight.shape)}"
        )
    check_dtype(op, "weight", weight, FLOATS)
    if groups < 1 or weight.shape[0] % groups != 0:
        raise ValueError(
            f"{op}: groups must be at least 1 and divide the {weight.shape[0]} outputs, "
            f"got {groups}"
        )
    channels = weight.shape[1] * groups
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{op}: x must have shape [N, {channels}, H, W], got {list(x.shape)}")
    check_path(op, "x", x, weight)
    if mask is not None:
        check_mask(op, mask, weight)
    sizes = out_sizes(op, "x", x, weight.shape[2:], stride, padding, dilation)
    return [x.shape[0], weight.shape[0], *sizes]


def _fake(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    geometry = stride, padding, dilation, groups
    return x.new_empty(_checked("squared_conv2d", x, weight, mask, geometry))


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    saliency: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    with_dx: bool = True,
    add: bool = True,
) -> Tensor:
    op = "squared_conv2d_backward"
    expected = _checked(op, x, weight, mask, (stride, padding, dilation, groups))
    if list(dy.shape) != expected:
        raise ValueError(f"{op}: dy must have shape {expected}, got {list(dy.shape)}")
    check_path(op, "dy", dy, weight)
    check_weight_shape(op, "saliency", saliency, weight)
    check_path(op, "saliency", saliency, weight)
    return x.new_empty(x.shape if with_dx else [0])


def _contiguous(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The forward where there are no kernels; torch's convolutions do not know empty sums."""
    if x.numel() == 0 or weight.numel() == 0:
        return _fake(x, weight, mask, stride, padding, dilation, groups).zero_()
    y = reference.squared_conv2d(x, weight, mask, stride, padding, dilation, groups)
    return y.contiguous()


def squared_conv2d_pays(x: Tensor, positions: int, density: float) -> bool:
    """Whether the kernels are expected to beat torch's convolutions, forward and backward.

    The rule: a CPU with kernels, at most 256 positions of the output (samples included), and at
    most 40% of the weights kept (docs/kernels.md says what that rests on).
    """
    here = _native.problem is None and x.device.type == "cpu"
    return here and 0 < positions <= _SPARSE_MAP and density <= _SPARSE


def squared_conv2d_columns_pay(dy: Tensor, x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether the way through columns is expected to beat torch's backward.

    The rule: a CPU with kernels, one group, at most 49 positions of the output (samples included)
    and a weight of at least two million entries. `python bench/run.py squared-conv2d` measures what
    it rests on.
    """
    positions = dy.shape[0] * dy.shape[2] * dy.shape[3]
    return (
        _native.problem is None
        and x.device.type == "cpu"
        and groups == 1
        and 0 < positions <= _SMALL_MAP
        and weight.numel() >= _LARGE_WEIGHT
    )


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    saliency: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    with_dx: bool = True,
    add: bool = True,
) -> Tensor:
    """The backward where there are no kernels."""
    if not add:
        saliency.zero_()
    if x.numel() == 0 or weight.numel() == 0 or dy.numel() == 0:
        return torch.zeros_like(x) if with_dx else x.new_empty(0)
    geometry = stride, padding, dilation, groups
    dx = reference.squared_conv2d_backward(
        dy, x, weight, mask, saliency, *geometry, with_dx=with_dx
    )
    return dx.contiguous()


declare(
    "squared_conv2d(Tensor x, Tensor weight, Tensor? mask, int[] stride, int[] padding,"
    " int[] dilation, int groups) -> Tensor",
    fake=_fake,
    reference=_contiguous,
)
declare(
    "squared_conv2d_backward(Tensor dy, Tensor x, Tensor weight, Tensor? mask, Tensor(a!) saliency,"
    " int[] stride, int[] padding, int[] dilation, int groups, bool with_dx=True, bool add=True)"
    " -> Tensor",
    fake=_fake_backward,
    reference=_backward,
)
