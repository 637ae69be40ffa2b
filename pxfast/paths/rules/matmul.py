"""Matrix products: with a weight, of queries and keys, and of a gate with the value it gates.

q kᵀ carries no path: a softmax will open it, and what it opens it with are the path sums behind q
and k. A v is gate times value: Σ_j A_ij² path_j where the data's gates count, the mean over the
allowed tokens in g, the sum behind any other gate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pxfast.errors import NoRuleError
from pxfast.paths.network import Network
from pxfast.paths.opening import Dots, Entries, Opening
from pxfast.paths.pathsum import PathSum
from pxfast.paths.rearranged import even
from pxfast.paths.registry import rule, spellings
from pxfast.paths.rules.arithmetic import (
    add,
    is_gate,
    multiply,
    path_of,
    sum_over,
    with_side_branch,
)
from pxfast.paths.rules.linear import applied, linear_path


@rule(*spellings("matmul", "mm", "bmm"), Tensor.__matmul__, Tensor.__rmatmul__)
def matmul(network: Network, func: Any, input: Any, other: Any) -> Any:
    """x @ W for a weight or constant W [K, O], q @ k, or gate @ value (or value @ gate)."""
    if func is Tensor.__rmatmul__:
        input, other = other, input
    if not hasattr(other, "path") and other.dim() == 2 and path_of(input) is not None:
        used = applied(network, input, other)
        theta = used.masked() if network.values else used.theta
        value = network.value(torch.matmul, input, theta)
        return network.tensor(value, linear_path(network, input, used.transposed()))
    if path_of(input) is None and path_of(other) is None:
        return network.tensor(network.value(torch.matmul, input, other), None)
    if min(input.dim(), other.dim()) < 2 or max(input.dim(), other.dim()) < 3:
        raise _unknown(network, func, input, other)
    value = network.value(torch.matmul, input, other)
    gates = [hasattr(x, "path") and x.path is None for x in (input, other)]
    if any(gates):
        return gated_matmul(network, value, input, other, gates[0])
    result = network.tensor(value, None)
    answer = None
    if path_of(input) is not None and path_of(other) is not None:
        answer = is_gate(input, other)
    if answer is not None:  # unless a softmax makes attention of it
        result = gated_matmul(network, value, input, other, answer)
    dots = Dots(entering(network, input), entering(network, other))
    result.opening = Opening(None, dots, attention=True)
    result.ended = None if answer is not None else network.ended(func, product=True)
    return result


def _unknown(network: Network, func: Any, *operands: Any) -> NoRuleError:
    shapes = " and ".join(str(list(operand.shape)) for operand in operands)
    return NoRuleError(
        f"{func.__name__} has no rule for operands of shapes {shapes} (in "
        f"{network.weights.where()}): expected a tensor with a path times a two-dimensional "
        "weight, or a batch of products, [N, …, T, C] @ [N, …, C, S]. A product of two matrices "
        "computed from the data mixes the samples of a batch. If it should, put it into a "
        "function of its own and register a rule for that with pxfast.rule (docs/extending.md)."
    )


def entering(network: Network, x: Any) -> Entries:
    """The path sums of one factor of q kᵀ; a factor without a path (a learned query) counts as
    ones."""
    path = path_of(x)
    if path is None:
        path = PathSum(torch.ones([1] * x.dim(), dtype=network.dtype, device=network.path_device))
    return Entries(path, tuple(x.shape if not hasattr(x, "value") else x.value.shape))


def gated_matmul(network: Network, value: Any, x: Any, y: Any, left: bool) -> Any:
    """x @ y, where x (``left``) or y is the gate."""
    gate, gated = (x, y) if left else (y, x)
    if gate.path is None and gate.opening is None and gate.ended is not None:
        raise NoRuleError(
            f"the gate of a matrix product (in {network.weights.where()}) came out of "
            f"{gate.ended}, which is no activation, so what it stands for in g is not known. If "
            "it is a softmax written by hand, use torch.softmax; else put the product into a "
            "function of its own and register a rule for that with pxfast.rule "
            "(docs/extending.md)."
        )
    if gate.opening is not None and gate.opening.activation == "exp":  # a softmax by hand
        like = torch.empty((), dtype=network.dtype, device=network.path_device)
        dim = gate.value.dim() - (1 if left else 2)
        gate.opening = gate.opening.softmax(gate.value.shape, dim, like)
    weights, path = _weights(network, gate), gated.path
    size = gated.value.shape[-2 if left else -1]
    if left:
        path = weighted(network, weights, path, size)
    else:
        path = weighted(network, weights.mT, path.map(lambda m: m.mT), size).map(lambda m: m.mT)
    return network.tensor(value, with_side_branch(network, gate, path.normalised()))


def _weights(network: Network, gate: Any) -> Tensor:
    """What a gate multiplies path sums by: its square, in g the mean of a softmax or 1."""
    if network.gates:
        return network.like_path(gate.value.to(network.dtype).square())
    if gate.opening is not None and gate.opening.mean is not None:
        return gate.opening.mean
    return torch.ones([1] * gate.value.dim(), dtype=network.dtype, device=network.path_device)


def weighted(network: Network, weights: Tensor, path: PathSum, tokens: int) -> PathSum:
    """Σ_j weights_ij path_j, for weights [..., T, S] and a path [..., S, D], both narrow. Where all
    tokens have the same path sum, a mean of them is that, whichever of them are allowed."""
    if weights.shape[-1] == 1:
        shape = torch.Size((*path.mantissa.shape[:-2], tokens, path.mantissa.shape[-1]))
        rows = sum_over(path, shape, [path.mantissa.dim() - 2], True)
        return rows.map(lambda m: weights * m)
    if path.mantissa.shape[-2] == 1:
        sums = weights.sum(-1, keepdim=True)
        return path.map(lambda m: (sums if network.gates else even(sums)) * m)
    return path.map(lambda m: weights @ m)


@rule(*spellings("addmm", "baddbmm"))
def addmm(
    network: Network,
    func: Any,
    input: Any,
    mat1: Any,
    mat2: Any,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Any:
    """β·b + α·(x @ y)."""
    product = matmul(network, torch.matmul, mat1, mat2)
    if alpha != 1:
        product = multiply(network, torch.mul, product, alpha)
    return add(network, torch.add, product, input, alpha=beta)
