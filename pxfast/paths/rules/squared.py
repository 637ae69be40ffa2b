"""Linear operations with squared weights, whose backward accumulates scores.

With cotangent dy, S += dW ∘ (θ²·M), where dW = ∂R/∂(θ²·M) is what a weight gradient would be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pxfast import ops
from pxfast.paths.pathsum import PathSum
from pxfast.paths.weight import Weight


class SquaredLinear(torch.autograd.Function):
    """y = x (W∘W∘M)ᵀ on path sums x [..., K]; the backward adds to ``weight.saliency``.

    ``anchor`` is a scalar that requires grad: it makes the backward run where x does not need one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, weight: Weight) -> Tensor:
        """Shapes: x [..., K], weight [O, K] → [..., O]."""
        ctx.set_materialize_grads(False)
        ctx.x, ctx.weight = x, weight.resting()
        if weight.weights.purpose == "scores":
            return ops.squared_linear(x, _theta(weight, x), weight.mask)
        if weight.weights.purpose == "structure":  # a product with ones: every output is the sum,
            sums = counted(weight, x.sum(-1, keepdim=True))  # in a row of its own
            return sums.repeat(*[1] * (x.dim() - 1), len(weight.theta))
        return counted(weight, x @ weight.squared(x.dtype).T)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> Any:  # type: ignore[override]
        """dx = dy (W∘W∘M), and the saliency in the same read of W."""
        if dy is None:  # behind where the backward of a side branch has ended
            return None, None, None
        x, weight, with_dx = ctx.x, ctx.weight, ctx.needs_input_grad[0]
        rows = open_rows(weight)
        dy = cotangent(weight, dy, dim=-1, masked=rows is None)
        if dy is None:
            return None, None, None
        if weight.weights.purpose == "structure":
            return dy.sum(-1, keepdim=True).expand(x.shape) if with_dx else None, None, None
        with_dx = with_dx and not weight.ends_side_branch()
        weight = weight.loaded()
        whole, wanted = weight, weight.wants_scores()
        if rows is not None:
            dy, weight = dy[..., rows], weight.rows(rows)
        if wanted and weight.weights.purpose == "scores":
            with whole.scores(x.device, rows) as (saliency, new):
                theta = _theta(weight, x)
                dx = ops.squared_linear_backward(
                    dy, x, theta, weight.mask, saliency, with_dx, add=not new
                )
            return dx if with_dx else None, None, None
        squared = weight.squared(x.dtype)
        if wanted:
            dw = dy.flatten(0, -2).T @ x.flatten(0, -2) if dy.dim() > 1 else torch.outer(dy, x)
            with whole.scores(x.device, rows) as scores:
                scores.add(dw.mul_(weight.factor(squared)))
        return dy @ squared if with_dx else None, None, None


class SquaredConvolution(torch.autograd.Function):
    """A convolution of path sums with W∘W∘M; the backward adds to ``weight.saliency``.

    ``known`` is the result where it has been computed before, together with the value.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, weight: Weight, geometry: Any, known: Tensor | None
    ) -> Tensor:
        """Shapes: x [N, C, *space], weight as torch's convolutions have it."""
        ctx.set_materialize_grads(False)
        ctx.x, ctx.weight, ctx.geometry = x, weight.resting(), geometry
        ctx.sparse = known is None and geometry.squared_pays(x, weight)
        if known is not None:
            return known.view_as(known)
        if ctx.sparse:
            stride, padding, dilation, _, _ = geometry.arguments
            theta, groups = _theta(weight, x), geometry.groups
            return ops.squared_conv2d(x, theta, weight.mask, stride, padding, dilation, groups)
        return counted(weight, geometry(x, weight.squared(x.dtype)))

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> Any:  # type: ignore[override]
        """dx, and the saliency."""
        x, weight, geometry = ctx.x, ctx.weight, ctx.geometry
        dy = cotangent(weight, dy, dim=1, geometry=geometry)
        if dy is None:
            return None, None, None, None, None
        with_dx = ctx.needs_input_grad[0] and not weight.ends_side_branch()
        weight, wanted = weight.loaded(), weight.wants_scores()
        if wanted and (ctx.sparse or geometry.squared_columns_pay(dy, x, weight)):
            stride, padding, dilation, _, _ = geometry.arguments
            mask, theta = weight.mask, _theta(weight, x)
            with weight.scores(x.device) as (saliency, new):
                if ctx.sparse:
                    dx = ops.squared_conv2d_backward(
                        dy, x, theta, mask, saliency, stride, padding, dilation,
                        geometry.groups, with_dx, not new,
                    )  # fmt: skip
                else:
                    dx = ops.squared_conv2d_backward_by_columns(
                        dy, x, theta, mask, saliency, stride, padding, dilation, with_dx, not new
                    )
            return dx if with_dx else None, None, None, None, None
        squared = weight.squared(x.dtype)
        weight.leave_spare()
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy, x, squared, None, *geometry.arguments, geometry.groups, [with_dx, wanted, False]
        )
        if wanted:
            weight.keep_scores(dw.mul_(weight.factor(squared)))
        return dx, None, None, None, None


def counted(weight: Weight, paths: Tensor) -> Tensor:
    """Path sums as they are, or 1 where there is a path if only their existence counts."""
    if weight.weights.purpose in ("existence", "structure"):
        return (paths > 0).to(paths.dtype)
    return paths


def open_rows(weight: Weight) -> slice | None:
    """The rows of a matrix that a cotangent can arrive at, where they lie side by side and are not
    all: value rows in the main backward, the others in that of a side branch. Packed projections of
    queries, keys and values have both."""
    rows = weight.value_rows
    if rows is None or weight.weights.purpose == "structure":
        return None
    wanted = rows[:, 0] if weight.weights.side is None else ~rows[:, 0]
    count, first = int(wanted.count_nonzero()), int(wanted.to(torch.uint8).argmax())
    if count in (0, len(wanted)) or not bool(wanted[first : first + count].all()):
        return None
    return slice(first, first + count)


def note_use(weight: Weight, path: PathSum) -> None:
    """In the structure pass, count a use of a weight, unless its whole input lies on value paths:
    unless a cotangent arrives at every entry of the input's path sum, by whichever layer."""
    if weight.weights.purpose != "structure":
        return
    weight.count_use(1)

    def arrived(cotangent: Tensor | None) -> None:
        if cotangent is not None and bool((cotangent > 0).all()):
            weight.count_use(-1)

    if path.mantissa.requires_grad:
        path.mantissa.register_hook(arrived)


def cotangent(
    weight: Weight, dy: Tensor | None, dim: int, geometry: Any = None, masked: bool = True
) -> Tensor | None:
    """The cotangent that a weight's backward uses; None where none arrives.

    The structure pass notes the rows where one arrives: value paths leave them. The backward of a
    side branch is restricted to the other rows (``masked``: by zeros in the cotangent).
    """
    if dy is None:
        return None
    dy = counted(weight, dy)
    if weight.weights.purpose == "structure":
        arrives = dy.transpose(0, dim).flatten(1).any(1)
        weight.note_value_rows(_by_row(arrives, weight.theta, geometry))
    elif weight.weights.side is not None:
        rows = weight.value_rows
        closed = None if rows is None else ~_rows_of(rows, geometry).to(dy.device)
        if closed is None or not bool(closed.any()):
            return None
        if not masked:
            return dy
        return dy * closed.reshape(-1, *[1] * (dy.dim() - 1 - dim if dim >= 0 else 0))
    return dy


def _by_row(rows: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    """One entry per output unit, shaped to broadcast against the weight."""
    if geometry is None or not geometry.transposed:
        return rows.reshape(-1, *[1] * (weight.dim() - 1))
    inputs, outputs = weight.shape[0] // geometry.groups, weight.shape[1]
    grouped = rows.reshape(geometry.groups, 1, outputs).expand(-1, inputs, -1)
    return grouped.reshape(-1, outputs, *[1] * (weight.dim() - 2))


def _rows_of(weight: Tensor, geometry: Any) -> Tensor:
    """One entry per output unit of something that is equal along every row of the weight."""
    if geometry is None or not geometry.transposed:
        return weight.flatten(1)[:, 0]
    inputs = weight.shape[0] // geometry.groups
    return weight.flatten(2)[::inputs, :, 0].flatten()


def _theta(weight: Weight, x: Tensor) -> Tensor:
    """θ as the ops take it: a model that mixes float64 with other dtypes has float64 path sums."""
    return weight.theta.to(x.dtype) if x.dtype == torch.float64 else weight.theta
