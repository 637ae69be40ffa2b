"""Sums, products and reductions.

Paths add. A constant or learned factor counts as θ² does (g, J); a factor that depends on the
sample but carries no path is a gate (h, J). In a product of two path tensors, gate times value, the
gate's value is the gate.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pxfast.errors import NoRuleError
from pxfast.paths.ended import AS_GATE
from pxfast.paths.masks import fixed_part
from pxfast.paths.network import Network
from pxfast.paths.opening import Entries, Opening
from pxfast.paths.pathsum import PathSum, total
from pxfast.paths.registry import rule, spellings
from pxfast.paths.rules.activation import out_of_place
from pxfast.paths.rules.complex import complex_product
from pxfast.paths.rules.heads import is_attention
from pxfast.paths.rules.sparse import then_add
from pxfast.paths.side import Product


@rule(*spellings("add"), Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
def add(network: Network, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """x + α·y: paths add, those of y with α² in g. A tensor without a path adds none."""
    ended = then_add(network, input, other) if alpha == 1 else None
    if ended is not None:
        return ended
    value = network.broadcast(torch.add, input, other, alpha=alpha)
    if is_logits(input) or is_logits(other):
        return masked_logits(network, value, input, other, alpha)
    result = network.tensor(value, _sum_of_paths(network, input, other, alpha))
    return mixed_gate(result, input, other)


@rule(*spellings("sub", "subtract"), Tensor.__sub__, Tensor.__isub__)
def subtract(network: Network, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """x - α·y: as add. Subtracting a tensor's own mean is centring, which starts and ends no
    path."""
    value = network.broadcast(torch.sub, input, other, alpha=alpha)
    mean_of = getattr(other, "mean_of", None)
    if alpha == 1 and mean_of is not None and mean_of() is input:
        result = network.tensor(value, input.path)
        result.opening = input.opening if is_logits(input) else None
        return result
    if is_logits(input):
        return masked_logits(network, value, input, other, -alpha)
    return network.tensor(value, _sum_of_paths(network, input, other, alpha))


@rule(torch.rsub, Tensor.__rsub__)
def reversed_subtract(network: Network, func: Any, input: Any, other: Any) -> Any:
    """y - x."""
    return subtract(network, torch.sub, other, input)


def is_logits(x: Any) -> bool:
    """Whether x is a product of two path tensors that nothing has opened yet."""
    return is_attention(x) and x.opening.activation is None


def masked_logits(network: Network, value: Any, x: Any, y: Any, alpha: float = 1) -> Any:
    """Attention logits x + α·y under a mask, or with a bias: what is added starts no path."""
    logits, other, factor = (x, y, alpha) if is_logits(x) else (y, x, 1)
    result = network.tensor(value, None)
    result.opening, result.ended = logits.opening, logits.ended
    fixed = fixed_part(network, other)
    if fixed is not None:
        result.opening = logits.opening.masked(fixed if factor == 1 else fixed * factor)
    return result


def _sum_of_paths(network: Network, x: Any, y: Any, alpha: Any) -> PathSum | None:
    first, second = path_of(x), path_of(y)
    if (first is None) != (second is None) and (is_attention(x) or is_attention(y)):
        raise NoRuleError(
            f"attention probabilities are added to a tensor with a path (in "
            f"{network.weights.where()}), which loses the paths behind them. Put the sum into a "
            "function of its own and register a rule for that with pxfast.rule."
        )
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
    if value.is_complex():
        return complex_product(network, value, input, other)
    if path_of(input) is None:
        input, other = other, input
    if path_of(input) is None:
        result = mixed_gate(network.tensor(value, None), input, other)
        return masked_exponentials(network, result, input, other)
    if path_of(other) is not None or getattr(other, "opening", None) is not None:
        gate, gated = (input, other) if _is_gate(network, input, other) else (other, input)
        return gated_product(network, value, gate, gated, 2)
    result = network.tensor(value, factored(network, input, other, 2))
    result.opening = input.opening  # scaling keeps what it came out of
    return result


def mixed_gate(result: Any, x: Any, y: Any) -> Any:
    """What is made of a gate tensor and of tensors without a path came out of the same."""
    openings = [getattr(operand, "opening", None) for operand in (x, y)]
    if result.path is None and None in openings:
        result.opening = openings[0] or openings[1]
    return result


def masked_exponentials(network: Network, result: Any, x: Any, y: Any) -> Any:
    """exp(logits) · c: a fixed c is a mask, exp(logits + log c)."""
    if result.opening is not None and result.opening.activation == "exp":
        fixed = fixed_part(network, y if getattr(x, "opening", None) is not None else x)
        if fixed is not None:
            result.opening = result.opening.masked(fixed.to(network.dtype).log())
    return result


BOUNDED = ("softmax", "sigmoid", "hardsigmoid", "tanh")


def gated_product(network: Network, value: Any, gate: Any, gated: Any, power: int) -> Any:
    """gate · value: the value's path, times ``gate**power`` where gates count."""
    path = network.gated(gated, lambda: gate.value.to(network.dtype) ** power)
    return network.tensor(value, with_side_branch(network, gate, path))


def with_side_branch(network: Network, gate: Any, path: PathSum | None) -> PathSum | None:
    """The path of a value behind a gate, which has a side branch unless it is a mere norm."""
    opening: Opening | None = gate.opening
    if opening is not None and opening.activation is not None:
        return beside(network, opening, path)
    if gate.path is not None:
        entering = Entries(gate.path, tuple(gate.value.shape))
        return beside(network, Opening("none", entering), path)
    if opening is not None:
        raise undecided(network)
    return path


def beside(network: Network, opening: Opening, path: PathSum | None) -> PathSum | None:
    """The path of a gated value; where scores are wanted, the side branch of its gate is noted."""
    if path is not None and network.squares and network.differentiate:
        product, path = Product.of(opening, path, network.weights)
        network.products.append(product)
    return path


def _is_gate(network: Network, x: Any, y: Any) -> bool:
    """Whether x is the gate of x · y, rather than y; an error where that cannot be told."""
    answer = is_gate(x, y)
    if answer is None:
        answer = _has_passed_fewer_layers(x, y)
    if answer is None:
        raise undecided(network)
    return answer


def _has_passed_fewer_layers(x: Any, y: Any) -> bool | None:
    """Whether fewer weights lie behind x than behind y; None if they are as many."""
    from pxfast.paths.tensor import Interpreter

    layers = Interpreter.running().layers
    first, second = ((factor.lineage & layers).bit_count() for factor in (x, y))
    return None if first == second else first < second


def is_gate(x: Any, y: Any) -> bool | None:
    """Whether x is the gate of x · y, rather than y; None where that cannot be told.

    The one without a path (a softmax); the one that the model declares; the one computed from the
    other; else the bounded one; else the only one that came out of an activation.
    """
    if (x.path is None) != (y.path is None):
        return x.path is None
    kinds = [None if factor.opening is None else factor.opening.activation for factor in (x, y)]
    if kinds.count("declared") == 1:
        return kinds[0] == "declared"
    if bool(x.lineage & y.own) != bool(y.lineage & x.own):
        return bool(x.lineage & y.own)
    for bounded in BOUNDED:
        if (kinds[0] == bounded) != (kinds[1] == bounded):
            return kinds[0] == bounded
    if (kinds[0] is None) != (kinds[1] is None):
        return kinds[0] is not None
    return None


def undecided(network: Network) -> NoRuleError:
    """The error about a product whose gate cannot be told."""
    return NoRuleError(
        f"cannot tell which factor of a product is the gate (in {network.weights.where()}): both "
        "carry paths, neither was computed from the other, both or none came out of an activation, "
        f"and as many layers lie behind the one as behind the other. {AS_GATE}"
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
        return mixed_gate(network.tensor(value, None), input, other)
    if path_of(other) is None:
        result = network.tensor(value, factored(network, input, other, -2))
        result.opening = input.opening
        return result
    if is_gate(input, other):
        raise NoRuleError(
            f"a quotient whose divisor carries the value path (in {network.weights.where()}) has "
            "no rule: the gate of a quotient must be its divisor. Put it into a function of its "
            "own and register a rule for that with pxfast.rule."
        )
    if network.squares and not bool(other.path.mantissa.any()):  # a sum of weights without paths
        return network.tensor(value, factored(network, input, other, -2))
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
    """Functions that only ever shape gates (norms written by hand): a value without a path.

    But the square of an activation is one itself (squared ReLU): φ²/z = φ · φ/z.
    """
    if is_square(func, *args, **kwargs):
        return squared_activation(network, args[0])
    value = network.value(out_of_place(func), *args, **kwargs)
    if not isinstance(value, Tensor):
        return type(value)([network.tensor(v, None) for v in value])
    result = network.tensor(value, None)
    result.ended = network.ended(func)
    if func in EXPONENTIAL:
        result.opening = exponential_of(args[0])
    return result


SQUARE, POWER = spellings("square"), [*spellings("pow"), Tensor.__pow__, Tensor.__ipow__]
RECTIFIED = ("relu", "relu6", "leaky_relu", "clamp")


def is_square(func: Any, x: Any = None, exponent: Any = 2, **kwargs: Any) -> bool:
    """Whether a call squares what came out of a ReLU."""
    if kwargs or not (func in SQUARE or (func in POWER and exponent in (2, 2.0))):
        return False
    return path_of(x) is not None and getattr(x.opening, "activation", None) in RECTIFIED


def squared_activation(network: Network, x: Any) -> Any:
    """φ(z)²: × φ(z) once more."""
    path = network.gated(x, lambda: x.value.to(network.dtype).square(), everywhere=True)
    result = network.tensor(network.value(torch.square, x), path)
    result.opening = x.opening
    return result


EXPONENTIAL = spellings("exp")


def exponential_of(x: Any) -> Opening | None:
    """What exp(x) came out of: a softmax if x is its logarithm or, once it is divided by its sum,
    if x holds attention logits."""
    if is_logits(x):
        return replace(x.opening, activation="exp")
    if x.opening is not None and x.opening.activation == "log_softmax":
        return replace(x.opening, activation="softmax")
    return None


@rule(*spellings("softmax", "log_softmax"))
def softmax(
    network: Network, func: Any, input: Any, dim: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """A gate tensor as well, and what it multiplies it opens (split attention)."""
    value = network.value(func, input, dim, *args, **kwargs)
    result = network.opened(network.tensor(value, None), "softmax", input)
    if result.opening is not None and isinstance(dim, int):
        like = torch.empty((), dtype=network.dtype, device=network.path_device)
        opening = result.opening.softmax(value.shape, dim % value.dim(), like)
        logarithm = "log" in func.__name__
        result.opening = replace(opening, activation="log_softmax") if logarithm else opening
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
