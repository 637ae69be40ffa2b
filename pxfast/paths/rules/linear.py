"""Linear layers, which with convolutions are the only operations with weights.

h: the weight is its mask M; where everything is kept, every output is the same sum over inputs
(kept narrow). g and J: the weight is θ²·M, and the backward accumulates the saliency S =
θ²·M·∂R/∂(θ²·M). Biases start no path.
"""

from __future__ import annotations

from collections.abc import Callable
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
from pxfast.paths.rules.squared import SquaredLinear, note_use
from pxfast.paths.weight import Weight

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
        lambda: _shape_behind(input.value.shape, weight.shape),
        lambda x, bias: row_by_row(x, used, used.masked_rows, bias),
        input,
        bias,
    )
    return network.tensor(value, linear_path(network, input, used))


def _shape_behind(shape: torch.Size, weight: torch.Size) -> tuple[int, ...]:
    if shape[-1:] != weight[-1:]:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({shape[:-1].numel()}x{shape[-1]} and "
            f"{weight[1]}x{weight[0]})"
        )
    return (*shape[:-1], weight[0])


def applied(network: Network, x: Any, weight: Any) -> Weight:
    """The weight that is applied to x, which must not have lost its path on the way."""
    used = network.weights(weight)
    if x.path is None and x.ended is not None and used.source is not None:
        raise NoRuleError(
            f"{x.ended} makes a gate tensor, which carries no path, but its result reaches the "
            f"weight {used.source.name} (in {network.weights.where()}), whose paths would be lost. "
            f"{x.ended.advice}"
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


def summed(path: PathSum, dim: int, size: int) -> PathSum:
    """Sum over one dimension of the given full size, kept with size 1; a constant dimension is a
    multiplication."""
    if path.mantissa.shape[dim] == 1:
        return path.times(float(size))
    return path.map(lambda m: m.sum(dim, keepdim=True))
