"""Sums, products and reductions.

Paths add. A constant or learned factor counts as θ² does (g, J); a factor that depends on the
sample but carries no path is a gate (h, J). In a product of two path tensors, gate times value, the
gate's value is the gate.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor

from pxfast.errors import NoRuleError
from pxfast.paths.network import Network
from pxfast.paths.pathsum import PathSum, total
from pxfast.paths.registry import full_name, rule, spellings
from pxfast.paths.rules.activation import out_of_place
from pxfast.paths.rules.linear import applied, linear_path
from pxfast.paths.side import Opening, Product


@rule(*spellings("add"), Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
def add(network: Network, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """x + α·y: paths add, those of y with α² in g. A tensor without a path adds none."""
    value = network.broadcast(torch.add, input, other, alpha=alpha)
    return network.tensor(value, _sum_of_paths(network, input, other, alpha))


@rule(*spellings("sub", "subtract"), Tensor.__sub__, Tensor.__isub__)
def subtract(network: Network, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """x - α·y: as add. Subtracting a tensor's own mean is centring, which starts and ends no
    path."""
    value = network.broadcast(torch.sub, input, other, alpha=alpha)
    mean_of = getattr(other, "mean_of", None)
    if alpha == 1 and mean_of is not None and mean_of() is input:
        return network.tensor(value, input.path)
    return network.tensor(value, _sum_of_paths(network, input, other, alpha))


@rule(torch.rsub, Tensor.__rsub__)
def reversed_subtract(network: Network, func: Any, input: Any, other: Any) -> Any:
    """y - x."""
    return subtract(network, torch.sub, other, input)


def _sum_of_paths(network: Network, x: Any, y: Any, alpha: Any) -> PathSum | None:
    first, second = path_of(x), path_of(y)
    if alpha != 1:
        second = network.scaled(second, lambda: float(alpha) ** 2)
    if first is None or second is None:
        return first if second is None else second
    return total([first, second])


def path_of(x: Any) -> PathSum | None:
    """The path of a PathTensor, None for anything else."""
    return getattr(x, "path", None)


@rule(*spellings("mul", "multiply"), Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__)
def multiply(network: Network, func: Any, input: Any, other: Any) -> Any:
    """Products: with a constant or learned scale, with a gate tensor, or of gate and value."""
    value = network.broadcast(torch.mul, input, other)
    if path_of(input) is None:
        input, other = other, input
    if path_of(input) is None:
        return network.tensor(value, None)
    if path_of(other) is not None or getattr(other, "opening", None) is not None:
        gate, gated = (input, other) if _is_gate(network, input, other) else (other, input)
        return gated_product(network, value, gate, gated, 2)
    result = network.tensor(value, factored(network, input, other, 2))
    result.opening = input.opening  # scaling keeps what it came out of
    return result


BOUNDED = ("softmax", "sigmoid", "hardsigmoid", "tanh")


def gated_product(network: Network, value: Any, gate: Any, gated: Any, power: int) -> Any:
    """gate · value: the value's path, times ``gate**power`` where gates count."""
    path = network.gated(gated, lambda: gate.value.to(network.dtype) ** power)
    if path is not None and network.squares and network.differentiate:
        opening = gate.opening
        if opening is None:
            repeats = gate.value.numel() / max(1, gate.path.mantissa.numel())
            opening = Opening("none", gate.path, repeats)
        product, path = Product.of(opening, path, network.weights)
        network.products.append(product)
    return network.tensor(value, path)


def _is_gate(network: Network, x: Any, y: Any) -> bool:
    """Whether x is the gate of x · y, rather than y.

    The one without a path (a softmax); the one computed from the other; else the bounded one; else
    the only one that came out of an activation.
    """
    if (x.path is None) != (y.path is None):
        return x.path is None
    if bool(x.lineage & y.own) != bool(y.lineage & x.own):
        return bool(x.lineage & y.own)
    kinds = [None if factor.opening is None else factor.opening.activation for factor in (x, y)]
    for bounded in BOUNDED:
        if (kinds[0] == bounded) != (kinds[1] == bounded):
            return kinds[0] == bounded
    if (kinds[0] is None) != (kinds[1] is None):
        return kinds[0] is not None
    raise NoRuleError(
        f"cannot tell which factor of a product is the gate (in {network.weights.where()}): both "
        "carry paths, neither was computed from the other, and both or none came out of an "
        "activation. Put the product into a function of its own and register a rule for it with "
        "pxfast.rule."
    )


def factored(network: Network, x: Any, factor: Any, power: int) -> PathSum | None:
    """The path of x times ``factor**power``: a constant (g, J) or, if it was computed from the
    data, a gate (h, J)."""
    if hasattr(factor, "path"):
        return network.gated(x, lambda: factor.value.to(network.dtype) ** power)
    if isinstance(factor, Tensor):
        return network.scaled(x.path, lambda: network.like_path(factor) ** power)
    return network.scaled(x.path, lambda: float(factor) ** power)


@rule(*spellings("div", "divide", "true_divide"), Tensor.__truediv__, Tensor.__itruediv__)
def divide(
    network: Network,
    func: Any,
    input: Any,
    other: Any,
    *,
    rounding_mode: str | None = None,
) -> Any:
    """x / c, for a constant, a learned scale or a gate tensor c; or for a gate with a path."""
    value = network.broadcast(torch.div, input, other, rounding_mode=rounding_mode)
    if path_of(input) is None or rounding_mode is not None:
        return network.tensor(value, None)
    if path_of(other) is None:
        return network.tensor(value, factored(network, input, other, -2))
    if _is_gate(network, input, other):
        raise NoRuleError(
            f"a quotient whose divisor carries the value path (in {network.weights.where()}) has "
            "no rule: the gate of a quotient must be its divisor. Put it into a function of its "
            "own and register a rule for that with pxfast.rule."
        )
    return gated_product(network, value, other, input, -2)


@rule(
    *spellings("neg", "negative", "abs", "positive"),
    Tensor.__neg__,
    Tensor.__abs__,
    Tensor.__pos__,
)
def sign(network: Network, func: Any, input: Any) -> Any:
    """A sign squares to one."""
    return network.tensor(network.value(out_of_place(func), input), input.path)


@rule(
    *spellings(
        "pow", "square", "sqrt", "rsqrt", "exp", "reciprocal", "norm", "var", "std", "log", "exp2",
        "expm1", "log1p", "logsumexp", "cos",
    ),
    torch.linalg.vector_norm, torch.linalg.norm, torch.var_mean, torch.std_mean,
    Tensor.__pow__, Tensor.__rpow__, Tensor.__rtruediv__, Tensor.__ipow__,
)  # fmt: skip
def gate_tensor(network: Network, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Functions that only ever shape gates (norms written by hand): a value without a path."""
    value = network.value(out_of_place(func), *args, **kwargs)
    if not isinstance(value, Tensor):
        return type(value)([network.tensor(v, None) for v in value])
    result = network.tensor(value, None)
    result.ended = full_name(func)
    return result


@rule(*spellings("softmax", "log_softmax"))
def softmax(
    network: Network, func: Any, input: Any, dim: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """A gate tensor as well, and what it multiplies it opens (split attention)."""
    value = network.value(func, input, dim, *args, **kwargs)
    result = network.opened(network.tensor(value, None), "softmax", input)
    if input.path is not None and isinstance(dim, int) and dim % value.dim() == 1:
        result.logits = (input.path, value.shape)  # over classes, in case it is an output
    return result


@rule(*spellings("sum", "mean", "nansum", "nanmean"))
def reduce(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Sums and means over dimensions, as they are."""
    value = network.value(func, input, *args, **kwargs)
    if input.path is None:
        return network.tensor(value, None)
    dims, keepdim = reduced_dims(input, *args, **kwargs)
    path = sum_over(input.path, input.value.shape, dims, keepdim)
    if "mean" in func.__name__:
        path = path.times(1 / math.prod(input.value.shape[dim] for dim in dims))
    result = network.tensor(value, path.normalised())
    if "mean" in func.__name__:
        result.mean_of = weakref.ref(input)
    return result


def sum_over(path: PathSum, shape: torch.Size, dims: list[int], keepdim: bool) -> PathSum:
    """Sum over dimensions of the given full sizes; a constant one is a multiplication."""
    mantissa = path.mantissa
    factor = math.prod(shape[dim] for dim in dims if mantissa.shape[dim] == 1)
    return PathSum((mantissa.sum(dims, keepdim=keepdim) if dims else mantissa) * factor,
                   path.exponent)  # fmt: skip


def reduced_dims(
    x: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> tuple[list[int], bool]:
    """The dimensions that a call to sum, mean or max reduces, and whether it keeps them."""
    dim = kwargs.get("axis", dim)
    if isinstance(dim, torch.dtype) or dim is None or dim == () or dim == []:
        return list(range(x.value.dim())), keepdim
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [d % x.value.dim() for d in dims], kwargs.get("keepdims", keepdim)


@rule(*spellings("matmul", "mm", "bmm"), Tensor.__matmul__, Tensor.__rmatmul__)
def matmul(network: Network, func: Any, input: Any, other: Any) -> Any:
    """x @ W for a weight or constant W [K, O]: a linear layer."""
    if func is Tensor.__rmatmul__:
        input, other = other, input
    if path_of(input) is None or hasattr(other, "path") or other.dim() != 2:
        raise NoRuleError(
            f"{func.__name__} has no rule for these operands (in {network.weights.where()}): "
            "expected a tensor with a path times a two-dimensional weight. Register a rule for "
            "the function around it with pxfast.rule."
        )
    used = applied(network, input, other)
    value = network.value(torch.matmul, input, used.masked())
    return network.tensor(value, linear_path(network, input, used.transposed()))


@rule(*spellings("addmm"))
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
    """β·b + α·(x @ W)."""
    product = (
        multiply(network, torch.mul, matmul(network, torch.mm, mat1, mat2), alpha)
        if alpha != 1
        else matmul(network, torch.mm, mat1, mat2)
    )
    return add(network, torch.add, product, input, alpha=beta)
