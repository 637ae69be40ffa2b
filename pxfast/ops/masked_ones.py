"""Layers whose weights are the bits of a mask: what path sums of the data pass go through.

Dimensions: K inputs of an output (of a convolution C/groups·h·w), O outputs. A mask M [O, ...] is
packed to a bit a weight: bit r % 32, from the lowest, of word r / 32 of row o is M[o, r], int32
[O, ⌈K/32⌉]; 32 times less than in float32. Path sums are float32 or float64. Arguments may have any
strides; one that is not contiguous is copied first, which costs a read and a write of it.
csrc/masked_ones.h is the kernels' contract.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pxfast import _native
from pxfast.ops._checks import SUMS, check_device, check_dtype, check_pair, out_sizes, pair
from pxfast.ops._declare import declare
from pxfast.reference import masked_ones as reference

_FEWEST_OUTPUTS = 64  # of a group, for which tables of sums are worth making on a CPU


def pack_ones(mask: Tensor) -> Tensor:
    """The bits of a mask, one a weight.

    Args:
        mask: M [O, ...], bool.

    Returns:
        int32 [O, ⌈K/32⌉], K the product of all but the first dimension; bits past K are 0.

    Raises:
        ValueError: mask is not bool or has no dimension.

    Example:
        >>> pack_ones(torch.tensor([[True, False, True], [False, True, True]]))
        tensor([[5],
                [6]], dtype=torch.int32)
    """
    return torch.ops.pxfast.pack_ones(mask)


def unpack_ones(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask that `pack_ones` packed.

    Args:
        bits: int32 [O, ⌈K/32⌉].
        shape: of the mask, O first.

    Returns:
        M, bool, of that shape.

    Example:
        >>> unpack_ones(torch.tensor([[5], [6]], dtype=torch.int32), (2, 3)).int()
        tensor([[1, 0, 1],
                [0, 1, 1]], dtype=torch.int32)
    """
    _check_bits("unpack_ones", bits, math.prod(shape[1:]), bits, "bits")
    return reference.unpack_ones(bits, math.prod(shape[1:])).reshape(tuple(shape))


def masked_ones_linear(x: Tensor, bits: Tensor) -> Tensor:
    """y = x Mᵀ.

    Differentiable by x.

    Args:
        x: path sums [..., K], float32 or float64.
        bits: of M [O, K], int32 [O, ⌈K/32⌉], as `pack_ones` makes them; on x's device.

    Returns:
        y [..., O], x's dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument, what was
            expected and what came.

    Example:
        >>> bits = pack_ones(torch.tensor([[True, False, True], [False, True, True]]))
        >>> masked_ones_linear(torch.tensor([1.0, 10.0, 100.0]), bits)
        tensor([101., 110.])
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Differentiable.apply(x, bits)  # type: ignore[no-any-return]
    return torch.ops.pxfast.masked_ones_linear(x, bits)


def masked_ones_linear_backward(dy: Tensor, bits: Tensor, inputs: int) -> Tensor:
    """dx = dy M: the forward with the bits transposed, which is done first.

    Args:
        dy: cotangent of y [..., O], float32 or float64.
        bits: of M [O, K], int32 [O, ⌈K/32⌉]; on dy's device.
        inputs: K.

    Returns:
        dx [..., K], dy's dtype.

    Raises:
        ValueError: as `masked_ones_linear`.
    """
    return torch.ops.pxfast.masked_ones_linear_backward(dy, bits, inputs)


def masked_ones_conv2d(
    x: Tensor,
    bits: Tensor,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """y = conv2d(x, M).

    Not differentiable: the data pass has no backward.

    Args:
        x: path sums [N, C, H, W], float32 or float64.
        bits: of M [O, C/groups, h, w], as `pack_ones` makes them; on x's device.
        kernel: h and w, or one for both.
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
        >>> bits = pack_ones(torch.tensor([[[[True, False]]], [[[True, True]]]]))
        >>> masked_ones_conv2d(torch.tensor([[[[1.0, 2.0, 3.0]]]]), bits, (1, 2))
        tensor([[[[1., 2.]],
        <BLANKLINE>
                 [[3., 5.]]]])
    """
    geometry = pair(kernel), pair(stride), pair(padding), pair(dilation), groups
    return torch.ops.pxfast.masked_ones_conv2d(x, bits, *geometry)


def masked_ones_pays(x: Tensor, outputs: int) -> bool:
    """Whether path sums x had better go through the bits of a mask than through torch's product
    with 0 and 1.

    The rule, the same at every density: there are kernels, x is on a CPU and in float32 or float64,
    and the layer, or each group of a convolution, has at least 64 outputs: with fewer, making the
    tables of sums that the kernels look up takes as long as the look-ups. What it rests on is
    measured by `python bench/run.py masked-ones`. On a GPU torch's product runs: which is faster
    there has not been measured.

    Args:
        x: path sums.
        outputs: of the layer, or of a group.

    Example:
        >>> masked_ones_pays(torch.ones(2, 8), outputs=4)
        False
    """
    return (
        _native.problem is None
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and outputs >= _FEWEST_OUTPUTS
    )


class _Differentiable(torch.autograd.Function):
    """masked_ones_linear with its gradient by x."""

    @staticmethod
    def forward(x: Tensor, bits: Tensor) -> Tensor:
        return torch.ops.pxfast.masked_ones_linear(x, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.bits = inputs
        ctx.inputs = x.shape[-1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        """dx = dy M."""
        return masked_ones_linear_backward(dy, ctx.bits, ctx.inputs), None


def _check_bits(op: str, bits: Tensor, inputs: int, x: Tensor, x_name: str) -> None:
    """Raise ValueError unless these can be the bits."""
    words = -(-inputs // 32)
    if bits.dim() != 2 or bits.shape[1] != words:
        raise ValueError(
            f"{op}: bits must have shape [O, {words}] for {inputs} inputs, got {list(bits.shape)}"
        )
    check_dtype(op, "bits", bits, (torch.int32,))
    check_device(op, "bits", bits, x, x_name)


def _fake_pack(mask: Tensor) -> Tensor:
    if mask.dim() == 0:
        raise ValueError("pack_ones: mask must have shape [O, ...], got []")
    check_dtype("pack_ones", "mask", mask, (torch.bool,))
    words = -(-math.prod(mask.shape[1:]) // 32)
    return mask.new_empty([mask.shape[0], words], dtype=torch.int32)


def _fake(x: Tensor, bits: Tensor) -> Tensor:
    op = "masked_ones_linear"
    if x.dim() == 0:
        raise ValueError(f"{op}: x must have shape [..., K], got []")
    check_dtype(op, "x", x, SUMS)
    _check_bits(op, bits, x.shape[-1], x, "x")
    return x.new_empty([*x.shape[:-1], bits.shape[0]])


def _fake_backward(dy: Tensor, bits: Tensor, inputs: int) -> Tensor:
    op = "masked_ones_linear_backward"
    if inputs < 0:
        raise ValueError(f"{op}: inputs must be at least 0, got {inputs}")
    check_dtype(op, "dy", dy, SUMS)
    _check_bits(op, bits, inputs, dy, "dy")
    if dy.dim() == 0 or dy.shape[-1] != bits.shape[0]:
        raise ValueError(f"{op}: dy must have shape [..., {bits.shape[0]}], got {list(dy.shape)}")
    return dy.new_empty([*dy.shape[:-1], inputs])


def _fake_conv2d(
    x: Tensor,
    bits: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    op = "masked_ones_conv2d"
    if x.dim() != 4:
        raise ValueError(f"{op}: x must have shape [N, C, H, W], got {list(x.shape)}")
    check_dtype(op, "x", x, SUMS)
    check_pair(op, "kernel", kernel, 1)
    channels, outputs = x.shape[1], bits.shape[0] if bits.dim() > 0 else 0
    if groups < 1 or channels % groups != 0 or outputs % groups != 0:
        raise ValueError(
            f"{op}: groups must be at least 1 and divide the {channels} channels and {outputs} "
            f"outputs, got {groups}"
        )
    _check_bits(op, bits, channels // groups * math.prod(kernel), x, "x")
    sizes = out_sizes(op, "x", x, kernel, stride, padding, dilation)
    return x.new_empty([x.shape[0], outputs, *sizes])


def _contiguous_conv2d(x: Tensor, bits: Tensor, *geometry: Any) -> Tensor:
    """Where there are no kernels; torch's convolutions do not know empty sums."""
    y = _fake_conv2d(x, bits, *geometry)
    if 0 in (x.numel(), y.numel()):
        return y.zero_()
    return reference.masked_ones_conv2d(x, bits, *geometry).contiguous()


declare(
    "pack_ones(Tensor mask) -> Tensor",
    fake=_fake_pack,
    reference=reference.pack_ones,
)
declare(
    "masked_ones_linear(Tensor x, Tensor bits) -> Tensor",
    fake=_fake,
    reference=reference.masked_ones_linear,
)
declare(
    "masked_ones_linear_backward(Tensor dy, Tensor bits, int inputs) -> Tensor",
    fake=_fake_backward,
    reference=reference.masked_ones_linear_backward,
)
declare(
    "masked_ones_conv2d(Tensor x, Tensor bits, int[] kernel, int[] stride, int[] padding,"
    " int[] dilation, int groups) -> Tensor",
    fake=_fake_conv2d,
    reference=_contiguous_conv2d,
)
