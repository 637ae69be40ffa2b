"""A masked convolution of a value and of the path sum beside it, through the same non-zeros.

Dimensions: N samples, C input channels, O outputs, a kernel [kh, kw]. The value goes through the
weights that the mask keeps; the path sum goes through the mask itself (activation network h) or
through the squared weights (joint network); docs/method.md has both. float32 or float64, the same
for every argument. Arguments may have any strides; one that is not contiguous is copied first,
which costs a read and a write of it. The kernels are for the CPU; elsewhere the formula runs, two
dense convolutions. What follows in a network, an evaluated BatchNorm, a sum with another branch, a
ReLU, can be the end of the same pass. csrc/sparse_dual_conv2d.h is the kernels' contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pxfast import _native
from pxfast.ops._checks import SUMS, check_dtype, check_dual, check_like, out_sizes, pair
from pxfast.ops._declare import declare
from pxfast.reference import sparse_dual_conv2d as reference

_OP = "sparse_dual_conv2d"
_PAYS_BELOW = 0.4  # of the weights kept, where outputs are computed one by one
_FEW, _PAYS_AT_FEW = 128, 0.1  # samples times height times width; of the weights kept
_SOME, _PAYS_AT_SOME = 400, 0.5
_GROUPING = "avx512"  # the instruction set with kernels that take four outputs at a time


def sparse_dual_conv2d(
    value: Tensor,
    path: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    squared: bool = False,
    *,
    scale: Tensor | None = None,
    residual: tuple[Tensor, Tensor] | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """y = conv2d(value, W∘M) + bias and, in one pass, path_out = conv2d(path, M or W∘W∘M).

    With an end, the results are those of what follows, in this order: an evaluated BatchNorm
    (`scale`, with `bias`), a sum with another branch (`residual`), a ReLU (`relu`).

    Its time is proportional to the weights that the mask keeps; `sparse_dual_conv2d_pays` says
    below which share of them it beats two dense convolutions. Besides the results it allocates a
    position and a weight for each of them (8 bytes; float64: 16), where the mask keeps 8% or more 5
    bytes (10) for every weight, and a packed part of the input for each thread. Not differentiable.

    Args:
        value: [N, C, H, W], float32 or float64.
        path: path sums [N, C, H, W], or size 1 along dimensions in which they are constant; value's
            dtype.
        weight: W [O, C, kh, kw], value's dtype; no size 0.
        mask: M [O, C, kh, kw], bool; False removes a weight, whatever it holds.
        bias: [O], value's dtype, or None; added to y alone.
        stride: of height and width, or one for both; at least 1.
        padding: of zeros around height and width, or one for both.
        dilation: of height and width, or one for both; at least 1.
        squared: send path sums through W∘W∘M (joint network) instead of M (activation network).
        scale: [O], value's dtype: W counts as scale∘W, a row for each. None: as it is.
        residual: value and path sums that are added to y and path_out, both [N, O, H', W'] and
            value's dtype. None: nothing is added.
        relu: path_out is 0 but where y > 0, and y becomes max(y, 0), NaN where it is.

    Returns:
        y and path_out, both [N, O, H', W'] and contiguous.

    Raises:
        ValueError: shapes, dtypes, devices or integers do not fit; the message names the argument,
            what was expected and what came.

    Example:
        >>> value, path = torch.tensor([[[[1.0, 2.0]]]]), torch.ones(1, 1, 1, 1)
        >>> weight, mask = torch.tensor([[[[3.0]]], [[[5.0]]]]), torch.tensor([True, False])
        >>> y, path_out = sparse_dual_conv2d(value, path, weight, mask.view(2, 1, 1, 1))
        >>> y.tolist(), path_out.tolist()
        ([[[[3.0, 6.0]], [[0.0, 0.0]]]], [[[[1.0, 1.0]], [[0.0, 0.0]]]])
    """
    geometry = pair(stride), pair(padding), pair(dilation)
    return torch.ops.pxfast.sparse_dual_conv2d(
        value, path, weight, mask, bias, *geometry, squared, scale, *(residual or ()), relu=relu
    )


def sparse_dual_conv2d_pays(value: Tensor, weight: Tensor, density: float) -> bool:
    """Whether `sparse_dual_conv2d` is expected to beat two convolutions, of value and of path sum.

    The rule: there are kernels for value's device and dtype, and the mask keeps at most a tenth of
    the weights where value has no more than 128 positions (of all samples together), half where it
    has no more than 400; at most 40% where the instruction set is none that groups outputs; else
    any share. What it rests on is measured by `python bench/run.py sparse-dual-conv2d`.

    Args:
        value: [N, C, H, W].
        weight: [O, C, kh, kw].
        density: share of the weights that the mask keeps.

    Example:
        >>> sparse_dual_conv2d_pays(torch.ones(1, 8, 4, 4), torch.ones(8, 8, 3, 3), 0.5)
        False
    """
    if _native.problem is not None or value.device.type != "cpu":
        return False
    if value.dtype != weight.dtype or value.dtype not in (torch.float32, torch.float64):
        return False
    positions = value.shape[0] * value.shape[2] * value.shape[3]
    if positions <= _FEW:
        return density <= _PAYS_AT_FEW
    if torch.ops.pxfast.cpu_isa() != _GROUPING:
        return density <= _PAYS_BELOW
    return positions > _SOME or density <= _PAYS_AT_SOME


def _check(value: Tensor, path: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless the tensors fit."""
    if weight.dim() != 4 or weight.numel() == 0:
        raise ValueError(
            f"{_OP}: weight must have shape [O, C, kh, kw], none of them 0, got "
            f"{list(weight.shape)}"
        )
    check_dtype(_OP, "weight", weight, SUMS)
    if value.dim() != 4 or value.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{_OP}: value must have shape [N, {weight.shape[1]}, H, W], got {list(value.shape)}"
        )
    check_dual(_OP, value, path, weight, mask, bias)


def _check_end(
    scale: Tensor | None,
    residual: Tensor | None,
    path: Tensor | None,
    weight: Tensor,
    out: list[int],
) -> None:
    """Raise ValueError unless what follows fits the result's shape."""
    if (residual is None) != (path is None):
        raise ValueError(f"{_OP}: residual and residual_path go together, got only one of them")
    if scale is not None:
        if scale.shape != weight.shape[:1]:
            raise ValueError(
                f"{_OP}: scale must have shape [{weight.shape[0]}], got {list(scale.shape)}"
            )
        check_like(_OP, "scale", scale, weight, "weight")
    for name, tensor in (("residual", residual), ("residual_path", path)):
        if tensor is not None:
            if list(tensor.shape) != out:
                raise ValueError(
                    f"{_OP}: {name} must have the result's shape {out}, got {list(tensor.shape)}"
                )
            check_like(_OP, name, tensor, weight, "weight")


def _fake(
    value: Tensor,
    path: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    squared: bool,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_path: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    _check(value, path, weight, mask, bias)
    sizes = out_sizes(_OP, "value", value, weight.shape[2:], stride, padding, dilation)
    shape = [value.shape[0], weight.shape[0], *sizes]
    _check_end(scale, residual, residual_path, weight, shape)
    return value.new_empty(shape), value.new_empty(shape)


def _contiguous(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    y, path_out = reference.sparse_dual_conv2d(*args, **kwargs)
    return y.contiguous(), path_out.contiguous()


declare(
    "sparse_dual_conv2d(Tensor value, Tensor path, Tensor weight, Tensor mask, Tensor? bias,"
    " int[] stride, int[] padding, int[] dilation, bool squared, Tensor? scale=None,"
    " Tensor? residual=None, Tensor? residual_path=None, bool relu=False) -> (Tensor, Tensor)",
    fake=_fake,
    reference=_contiguous,
    kernels=("cpu",),
)
