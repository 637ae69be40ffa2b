"""Linear operations with squared weights, whose backward accumulates scores instead of a weight
gradient.

With cotangent dy, S += dW ∘ (θ²·M) where dW = ∂R/∂(θ²·M) is what a weight gradient would be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pxfast import ops
from pxfast.paths.weights import Weight


class SquaredLinear(torch.autograd.Function):
    """y = x (W∘W∘M)ᵀ on path sums x [..., K]; the backward adds to ``weight.saliency``.

    ``anchor`` is a scalar that requires grad: it makes the backward run also where x does not need
    one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, weight: Weight) -> Tensor:
        """Shapes: x [..., K], weight [O, K] → [..., O]."""
        ctx.x, ctx.weight = x, weight
        if weight.indicator:
            return _exists(x @ weight.squared(x.dtype).T)
        return ops.squared_linear(x, _theta(weight, x), weight.mask)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        """dx = dy (W∘W∘M), and the saliency in the same read of W."""
        x, weight = ctx.x, ctx.weight
        weight.visit()
        theta, mask, saliency = _theta(weight, x), weight.mask, weight.saliency
        if weight.indicator:
            dx = _indicator_backward(_exists(dy), x, weight)
        elif saliency is None:
            dx = ops.squared_linear(dy, theta.T, None if mask is None else mask.T)
        else:
            with_dx = ctx.needs_input_grad[0]
            dx = ops.squared_linear_backward(dy, x, theta, mask, saliency, with_dx)
        return dx if ctx.needs_input_grad[0] else None, None, None


class SquaredConvolution(torch.autograd.Function):
    """A convolution of path sums with W∘W∘M; the backward adds to ``weight.saliency``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, weight: Weight, geometry: Any) -> Tensor:
        """Shapes: x [N, C, *space], weight as torch's convolutions have it."""
        ctx.x, ctx.weight, ctx.geometry = x, weight, geometry
        y = geometry(x, weight.squared(x.dtype))
        return _exists(y) if weight.indicator else y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        """dx, and the saliency."""
        x, weight, geometry = ctx.x, ctx.weight, ctx.geometry
        weight.visit()
        squared = weight.squared(x.dtype)
        dy = _exists(dy) if weight.indicator else dy
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy, x, squared, None, *geometry.arguments, geometry.groups,
            [ctx.needs_input_grad[0], weight.saliency is not None, False],
        )  # fmt: skip
        if weight.saliency is not None:
            weight.saliency.addcmul_(dw, squared)
        return dx, None, None, None


def _exists(paths: Tensor) -> Tensor:
    """1 where there is a path, whatever its size; 0 where there is none."""
    return (paths > 0).to(paths.dtype)


def _indicator_backward(dy: Tensor, x: Tensor, weight: Weight) -> Tensor:
    """SquaredLinear's backward for weights that count as 0 or 1."""
    squared = weight.squared(x.dtype)
    if weight.saliency is not None:
        weight.saliency.addcmul_(dy.flatten(0, -2).T @ x.flatten(0, -2), squared)
    return dy @ squared


def _theta(weight: Weight, x: Tensor) -> Tensor:
    """θ as the ops take it: a model that mixes float64 with other dtypes has float64 path sums."""
    return weight.theta.to(x.dtype) if x.dtype == torch.float64 else weight.theta
