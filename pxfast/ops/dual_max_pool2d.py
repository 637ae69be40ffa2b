"""Max-pooling of a value and, in the same pass, the path sum of the entry that it picks.

Dimensions: N samples, C channels. float32 or float64, the same for both. Arguments may have any
strides; one that is not contiguous is copied first, which costs a read and a write of it. The
kernels are for the CPU; elsewhere torch's pooling with indices and a gather serve.
csrc/dual_max_pool2d.h is the kernels' contract.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pxfast.ops._checks import SUMS, check_dtype, check_like, check_pair, pair
from pxfast.ops._declare import declare
from pxfast.reference import dual_max_pool2d as reference

_OP = "dual_max_pool2d"


def dual_max_pool2d(
    value: Tensor,
    path: Tensor,
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] = 0,
) -> tuple[Tensor, Tensor]:
    """y = max_pool2d(value) and the path sums of the entries picked, in one read of both.

    Of several largest entries the first is picked, of several NaN the last, as torch does. Not
    differentiable.

    Args:
        value: [N, C, H, W], float32 or float64; none but N is 0.
        path: path sums [N, C, H, W], or size 1 along dimensions in which they are constant; value's
            dtype.
        kernel: height and width of a window, or one for both.
        stride: of height and width, or one for both; at least 1.
        padding: around height and width, or one for both; at most half the kernel.

    Returns:
        y and path_out, both [N, C, H', W'] and contiguous; H' and W' are rounded down.

    Raises:
        ValueError: shapes, dtypes, devices or integers do not fit; the message names the argument,
            what was expected and what came.

    Example:
        >>> value, path = torch.tensor([[[[1.0, 4.0], [2.0, 3.0]]]]), torch.arange(4.0)
        >>> y, path_out = dual_max_pool2d(value, path.view(1, 1, 2, 2), 2, 2)
        >>> y.item(), path_out.item()
        (4.0, 1.0)
    """
    return torch.ops.pxfast.dual_max_pool2d(value, path, pair(kernel), pair(stride), pair(padding))


def _out_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Height or width of the output, if there is one."""
    if 2 * padding > kernel:
        raise ValueError(f"{_OP}: padding must be at most half the kernel {kernel}, got {padding}")
    if size + 2 * padding < kernel:
        raise ValueError(
            f"{_OP}: value with its padding must be at least as large as the kernel, {kernel}, "
            f"got {size + 2 * padding}"
        )
    return (size + 2 * padding - kernel) // stride + 1


def _fake(
    value: Tensor,
    path: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> tuple[Tensor, Tensor]:
    check_dtype(_OP, "value", value, SUMS)
    full, narrow = list(value.shape), list(path.shape)
    if len(full) != 4 or 0 in full[1:]:
        raise ValueError(
            f"{_OP}: value must have shape [N, C, H, W], none but N of them 0, got {full}"
        )
    if len(narrow) != 4 or any(n not in (1, size) for n, size in zip(narrow, full, strict=True)):
        raise ValueError(
            f"{_OP}: path must have value's shape {full} or size 1 instead, got {narrow}"
        )
    check_like(_OP, "path", path, value, "value")
    check_pair(_OP, "kernel", kernel, 1)
    check_pair(_OP, "stride", stride, 1)
    check_pair(_OP, "padding", padding, 0)
    sizes = [_out_size(full[2 + i], kernel[i], stride[i], padding[i]) for i in range(2)]
    shape = [*full[:2], *sizes]
    return value.new_empty(shape), path.new_empty(shape)


declare(
    "dual_max_pool2d(Tensor value, Tensor path, int[] kernel, int[] stride, int[] padding)"
    " -> (Tensor, Tensor)",
    fake=_fake,
    reference=reference.dual_max_pool2d,
    kernels=("cpu",),
)
