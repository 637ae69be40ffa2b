"""An activation as path sums see it: the value goes on, and the path times the squared gate.

Path sums are float64 where z is, and float32 otherwise (float32, bfloat16 and float16). They are
*narrow*: along a dimension on which they do not depend, their size is 1. csrc/gate.h is the
kernels' contract.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pxfast.ops._checks import FLOATS, PATH_DTYPE, check_beside, check_dtype, check_like
from pxfast.ops._declare import declare
from pxfast.reference import gate as reference


def gate(
    z: Tensor,
    path: Tensor,
    kind: str,
    a: float = 0.0,
    b: float = 0.0,
    *,
    inplace: bool = False,
    over_channels: bool = False,
) -> tuple[Tensor, Tensor]:
    """φ(z) and path · gate(z)², or its sum over the channels, in one read of both.

    The gate is φ(z)/z, with its limit φ'(0) at z = 0 (ReLU: 0); for sigmoid and hardsigmoid, and a
    hardtanh whose bounds leave 0 out, it is φ'(z). Differentiable by path, to any order; z is data.

    z in any dense memory format (contiguous, channels_last) is read as it lies, and so is a path in
    the same format. Other strides cost a copy: of z, of path, and of the value that goes back. With
    over_channels every z but a contiguous one costs one.

    Args:
        z: what the activation gets, any shape; float32, float64, bfloat16 or float16.
        path: path sums, float32 (float64 for a float64 z), z's shape or 1 in some dimensions.
        kind: relu, hardtanh (bounds a and b), leaky_relu (slope a), elu (α = a), gelu, gelu_tanh,
            silu, hardswish, mish, tanh, sigmoid or hardsigmoid.
        a: first parameter of the activation.
        b: second parameter of the activation.
        inplace: write the value into z.
        over_channels: sum the gated path over dimension 1 of z [N, C, ...], all that an unpruned
            layer behind the activation needs. Sums add one channel at a time in path's dtype.

    Returns:
        The value, z's dtype, and the gated path, path's dtype; both have z's shape, but the gated
        path size 1 in dimension 1 with over_channels.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the kind is unknown, or z requires grad.

    Example:
        >>> value, gated = gate(torch.tensor([-1.0, 2.0]), torch.tensor([3.0]), "leaky_relu", 0.5)
        >>> value, gated
        (tensor([-0.5000,  2.0000]), tensor([0.7500, 3.0000]))
    """
    if torch.is_grad_enabled() and z.requires_grad:
        raise ValueError("gate: z must not require grad, the gate is data: pass z.detach()")
    value = z if inplace else torch.empty_like(z)
    if torch.is_grad_enabled() and path.requires_grad:
        gated = _Differentiable.apply(z, path, kind, a, b, value)
        gated = gated.sum(1, keepdim=True) if over_channels else gated
    else:
        gated = torch.ops.pxfast.gate(z, path, kind, a, b, value, over_channels)
    if inplace:
        torch.autograd.graph.increment_version(z)
    return value, gated


def gated(z: Tensor, path: Tensor, kind: str, a: float = 0.0, b: float = 0.0) -> Tensor:
    """What `gate` gives of the path alone; not differentiable."""
    return torch.ops.pxfast.gate(z, path, kind, a, b)


class _Differentiable(torch.autograd.Function):
    """gated as a linear function of path; the gate is computed again where it is needed again."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, path: Tensor, kind: str, a: float, b: float, value: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z)
        ctx.narrow, ctx.activation = path.shape, (kind, a, b)
        return torch.ops.pxfast.gate(z, path, kind, a, b, value)

    @staticmethod
    def backward(ctx: Any, dgated: Tensor | None) -> Any:  # type: ignore[override]
        """dpath = dgated · gate(z)², summed where path was narrow."""
        if dgated is None:  # the backward has ended before
            return None, None, None, None, None, None
        (z,) = ctx.saved_tensors
        if dgated.requires_grad:
            dpath = _Differentiable.apply(z, dgated, *ctx.activation, None)
        else:
            dpath = torch.ops.pxfast.gate(z, dgated, *ctx.activation, None)
        return None, dpath.sum_to_size(ctx.narrow), None, None, None, None


def _fake(
    z: Tensor,
    path: Tensor,
    kind: str,
    a: float = 0.0,
    b: float = 0.0,
    value: Tensor | None = None,
    over_channels: bool = False,
) -> Tensor:
    """The output's shape. ValueError unless the arguments fit."""
    check_dtype("gate", "z", z, FLOATS)
    if over_channels and z.dim() < 2:
        raise ValueError(f"gate: over_channels needs z of shape [N, C, ...], got {list(z.shape)}")
    full, narrow = list(z.shape), list(path.shape)
    if len(full) != len(narrow) or any(
        n not in (1, size) for size, n in zip(full, narrow, strict=True)
    ):
        raise ValueError(
            f"gate: path must have z's shape {full}, or 1 in some dimensions, got {narrow}"
        )
    check_beside("gate", "path", path, PATH_DTYPE[z.dtype], z, "z")
    if value is not None:
        if value.shape != z.shape:
            raise ValueError(f"gate: value must have z's shape {full}, got {list(value.shape)}")
        check_like("gate", "value", value, z, "z")
    if kind not in reference.GATES:
        raise ValueError(f"gate: kind must be one of {', '.join(reference.GATES)}, got '{kind}'")
    if over_channels:
        return path.new_empty([1 if d == 1 else size for d, size in enumerate(z.shape)])
    return torch.empty_like(z, dtype=path.dtype)


declare(
    "gate(Tensor z, Tensor path, str kind, float a=0.0, float b=0.0, Tensor(a!)? value=None,"
    " bool over_channels=False) -> Tensor",
    fake=_fake,
    reference=reference.gate,
)
