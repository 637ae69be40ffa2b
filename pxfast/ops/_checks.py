"""What ops check of their arguments; csrc/binding says the same, word for word.

Every check raises ValueError with the op, the argument, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PATH_DTYPE = {  # of the path sums that go with values or weights of a dtype
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
FLOATS = tuple(PATH_DTYPE)
SUMS = (torch.float32, torch.float64)


def name_of(dtype: torch.dtype) -> str:
    """The dtype's name without the module."""
    return str(dtype).removeprefix("torch.")


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """The tensor's dtype is one of several."""
    if tensor.dtype not in allowed:
        *most, last = map(name_of, allowed)
        expected = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(f"{op}: {name} must be {expected}, got {name_of(tensor.dtype)}")


def check_device(op: str, name: str, tensor: Tensor, other: Tensor, other_name: str) -> None:
    """Two tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on {other_name}'s device {other.device}, got {tensor.device}"
        )


def check_like(op: str, name: str, tensor: Tensor, other: Tensor, other_name: str) -> None:
    """A tensor has another's dtype, and is on its device."""
    if tensor.dtype != other.dtype:
        raise ValueError(
            f"{op}: {name} must have {other_name}'s dtype {name_of(other.dtype)}, "
            f"got {name_of(tensor.dtype)}"
        )
    check_device(op, name, tensor, other, other_name)


def check_beside(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, other: Tensor, other_name: str
) -> None:
    """A tensor has the dtype that goes with another's, and is on its device."""
    if tensor.dtype != dtype:
        raise ValueError(
            f"{op}: {name} must be {name_of(dtype)} where {other_name} is {name_of(other.dtype)}, "
            f"got {name_of(tensor.dtype)}"
        )
    check_device(op, name, tensor, other, other_name)


def check_path(op: str, name: str, path: Tensor, weight: Tensor) -> None:
    """Path sums, or their saliency, go with a weight."""
    check_beside(op, name, path, PATH_DTYPE[weight.dtype], weight, "weight")


def check_weight_shape(op: str, name: str, tensor: Tensor, weight: Tensor) -> None:
    """A tensor has the weight's shape."""
    if tensor.shape != weight.shape:
        raise ValueError(
            f"{op}: {name} must have weight's shape {list(weight.shape)}, got {list(tensor.shape)}"
        )


def check_mask(op: str, mask: Tensor, weight: Tensor) -> None:
    """A mask has an entry, True or False, for every weight."""
    check_weight_shape(op, "mask", mask, weight)
    check_dtype(op, "mask", mask, (torch.bool,))
    check_device(op, "mask", mask, weight, "weight")


def check_dual(
    op: str, value: Tensor, path: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None
) -> None:
    """Value, path, mask and bias go with a weight [O, ...]; path may be constant along dimensions.

    That the value's shape goes with the weight's is for the op to see.
    """
    check_like(op, "value", value, weight, "weight")
    sizes = zip(path.shape, value.shape, strict=False)
    if path.dim() != value.dim() or not all(size in (full, 1) for size, full in sizes):
        raise ValueError(
            f"{op}: path must have value's shape {list(value.shape)} or size 1 instead, "
            f"got {list(path.shape)}"
        )
    check_like(op, "path", path, weight, "weight")
    check_mask(op, mask, weight)
    if bias is not None:
        if list(bias.shape) != [weight.shape[0]]:
            raise ValueError(
                f"{op}: bias must have shape [{weight.shape[0]}], got {list(bias.shape)}"
            )
        check_like(op, "bias", bias, weight, "weight")


# ---- The geometry of convolutions


def pair(value: int | Sequence[int]) -> list[int]:
    """One number for height and width, or one each."""
    return [value, value] if isinstance(value, int) else list(value)


def check_pair(op: str, name: str, numbers: Sequence[int], least: int) -> None:
    """Two integers, neither below the least."""
    if len(numbers) != 2 or min(numbers) < least:
        raise ValueError(f"{op}: {name} must be two integers >= {least}, got {list(numbers)}")


def out_sizes(
    op: str,
    name: str,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Height and width of the output of a convolution of x [N, C, H, W], if it has one."""
    for what, numbers, least in (
        ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)
    ):  # fmt: skip
        check_pair(op, what, numbers, least)
    sizes = []
    for axis in range(2):
        padded = x.shape[2 + axis] + 2 * padding[axis]
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        if padded < reach or kernel[axis] == 0:
            raise ValueError(
                f"{op}: {name} with its padding must be at least as large as the dilated kernel, "
                f"{reach}, got {padded}"
            )
        sizes.append((padded - reach) // stride[axis] + 1)
    return sizes
