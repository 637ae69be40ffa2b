"""A linear layer as path sums see it: every weight squared, biases dropped (docs/method.md).

Dimensions: K inputs, O outputs, any leading dimensions (T rows in all). Path sums are float64 where
the weight is, and float32 otherwise (float32, bfloat16 and float16 weights). Arguments may have any
strides; one that is not contiguous is copied first, which costs a read and a write of it.
csrc/squared_linear.h is the kernels' contract.

On tensor cores (CUDA, from 128 rows on, no float64) the digits that path sums and squares keep are
those that `torch.set_float32_matmul_precision` asks for: "highest", torch's default, all 24 of
float32; "high" 16, for half the work; "medium" the 8 of bfloat16, for a sixth. Sums stay float32.
Elsewhere the setting changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pxfast.ops._checks import (
    FLOATS,
    check_dtype,
    check_mask,
    check_path,
    check_weight_shape,
)
from pxfast.ops._declare import declare
from pxfast.reference import squared_linear as reference

PRECISIONS = ("highest", "high", "medium")


def squared_linear(x: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """y = x (W∘W∘M)ᵀ, with the squares formed while the weight is read.

    Differentiable by x and weight, to any order. Scoring needs no weight gradient and uses
    `squared_linear_backward` instead.

    Args:
        x: path sums [..., K], float32 (float64 for a float64 weight).
        weight: W [O, K], float32, float64, bfloat16 or float16.
        mask: M [O, K], bool; False removes a weight, whatever it holds. None keeps every weight.

    Returns:
        y [..., O], x's dtype. Many rows on a GPU keep the digits that
        `torch.set_float32_matmul_precision` asks for.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument, what was
            expected and what came.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> squared_linear(torch.ones(2), weight, torch.tensor([[True, False], [True, True]]))
        tensor([ 1., 25.])
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Differentiable.apply(x, weight, mask)  # type: ignore[no-any-return]
    return torch.ops.pxfast.squared_linear(x, weight, mask, matmul_precision())


def squared_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    saliency: Tensor,
    with_dx: bool = True,
    add: bool = True,
) -> Tensor:
    """dx = dy (W∘W∘M) and, in the same read of the weight, saliency += (dyᵀ x)∘W∘W∘M.

    With dy = ∂R/∂y this adds S = θ² ∂R/∂(θ²) (docs/method.md); no weight gradient is ever stored.
    Not differentiable.

    Args:
        dy: cotangent of y [..., O], x's dtype.
        x: path sums [..., K] that the forward got.
        weight: W [O, K].
        mask: M [O, K], bool, or None.
        saliency: S [O, K], x's dtype; added to in place. A masked weight adds exactly 0.
        with_dx: False where dx is not needed.
        add: False writes S instead, whatever `saliency` holds: on a CPU it is then not read.

    Returns:
        dx [..., K], x's dtype; an empty tensor where `with_dx` is False.

    Raises:
        ValueError: as `squared_linear`.

    Example:
        >>> saliency = torch.zeros(1, 2)
        >>> x, weight = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 1.0]])
        >>> squared_linear_backward(torch.ones(1), x, weight, None, saliency)
        tensor([9., 1.])
        >>> saliency
        tensor([[9., 2.]])
    """
    return torch.ops.pxfast.squared_linear_backward(
        dy, x, weight, mask, saliency, with_dx, add, matmul_precision()
    )


def matmul_precision() -> str:
    """What torch is asked to keep of float32 in products of matrices: highest, high or medium.

    Where only torch's newer settings say it, "tf32" counts as high. Code that torch.compile traces
    cannot read it and keeps all digits.
    """
    if torch.compiler.is_compiling():
        return PRECISIONS[0]
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer setting
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return PRECISIONS[1] if tf32 else PRECISIONS[0]


class _Differentiable(torch.autograd.Function):
    """squared_linear with the gradients of an ordinary op."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
        return torch.ops.pxfast.squared_linear(x, weight, mask, matmul_precision())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        """dx = dy (W∘W∘M) and dW = 2 (dyᵀ x)∘W∘M."""
        x, weight, mask = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = squared_linear(dy, weight.T, None if mask is None else mask.T)
        if ctx.needs_input_grad[1]:
            kept = weight if mask is None else weight.where(mask, 0)
            dw = 2 * torch.einsum("...o,...k->ok", dy, x) * kept
        return dx, dw, None


def _check(op: str, weight: Tensor, mask: Tensor | None, x: Tensor, precision: str) -> None:
    """Raise ValueError unless the arguments fit."""
    if weight.dim() != 2:
        raise ValueError(f"{op}: weight must have shape [O, K], got {list(weight.shape)}")
    check_dtype(op, "weight", weight, FLOATS)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{op}: x must have shape [..., {weight.shape[1]}], got {list(x.shape)}")
    check_path(op, "x", x, weight)
    if mask is not None:
        check_mask(op, mask, weight)
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision must be highest, high or medium, got {precision!r}")


def _fake(
    x: Tensor, weight: Tensor, mask: Tensor | None = None, precision: str = "highest"
) -> Tensor:
    _check("squared_linear", weight, mask, x, precision)
    return x.new_empty([*x.shape[:-1], weight.shape[0]])


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    saliency: Tensor,
    with_dx: bool = True,
    add: bool = True,
    precision: str = "highest",
) -> Tensor:
    op = "squared_linear_backward"
    _check(op, weight, mask, x, precision)
    expected = [*x.shape[:-1], weight.shape[0]]
    if list(dy.shape) != expected:
        raise ValueError(f"{op}: dy must have shape {expected}, got {list(dy.shape)}")
    check_path(op, "dy", dy, weight)
    check_weight_shape(op, "saliency", saliency, weight)
    check_path(op, "saliency", saliency, weight)
    return x.new_empty(x.shape if with_dx else [0])


def _reference(
    x: Tensor, weight: Tensor, mask: Tensor | None = None, precision: str = "highest"
) -> Tensor:
    return reference.squared_linear(x, weight, mask)


def _reference_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    saliency: Tensor,
    with_dx: bool = True,
    add: bool = True,
    precision: str = "highest",
) -> Tensor:
    if not add:
        saliency.zero_()
    dx = reference.squared_linear_backward(dy, x, weight, mask, saliency)
    return dx if with_dx else dx.new_empty(0)


declare(
    "squared_linear(Tensor x, Tensor weight, Tensor? mask=None, str precision='highest') -> Tensor",
    fake=_fake,
    reference=_reference,
)
declare(
    "squared_linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor? mask, Tensor(a!) saliency,"
    " bool with_dx=True, bool add=True, str precision='highest') -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
)
