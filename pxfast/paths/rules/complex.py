"""Complex numbers, as rotary embeddings use them: pairs of entries that a constant turns.

A complex tensor of path tensors has no path of its own but one for either half, real and imaginary.
(a + ib)(c + id) sends a to both halves, times c and d, and b as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pxfast.errors import NoRuleError
from pxfast.paths.network import Network
from pxfast.paths.pathsum import PathSum, aligned, total
from pxfast.paths.registry import rule

Halves = tuple[PathSum, PathSum]


@rule(torch.view_as_complex)
def view_as_complex(network: Network, func: Any, input: Any) -> Any:
    """[..., 2] → [...]."""
    result = network.tensor(network.value(func, input), None)
    if input.path is not None:
        pair = input.path.mantissa.expand(*input.path.shape[:-1], 2).unbind(-1)
        result.halves = tuple(PathSum(m, input.path.exponent) for m in pair)
    return result


@rule(torch.view_as_real)
def view_as_real(network: Network, func: Any, input: Any) -> Any:
    """[...] → [..., 2]."""
    path = None
    if input.halves is not None:
        exponent, halves = aligned(input.halves)
        path = PathSum(torch.stack(torch.broadcast_tensors(*halves), -1), exponent)
    return network.tensor(network.value(func, input), path)


def complex_product(network: Network, value: Tensor, x: Any, y: Any) -> Any:
    """A complex tensor times a constant or learned one."""
    if getattr(x, "halves", None) is None:
        x, y = y, x
    result = network.tensor(value, None)
    halves = getattr(x, "halves", None)
    if halves is None:
        return result
    if hasattr(y, "path") and not y.constant:
        raise NoRuleError(
            f"a complex product of two tensors that depend on the data (in "
            f"{network.weights.where()}) has no rule: one factor must be a constant or learned, as "
            "in rotary embeddings. Put the product into a function of its own and register a rule "
            "for that with pxfast.rule."
        )
    factor = torch.as_tensor(getattr(y, "value", y))
    parts = (factor.real, factor.imag if factor.is_complex() else torch.zeros_like(factor))

    def turned(straight: PathSum, across: PathSum) -> PathSum:
        pairs = zip((straight, across), parts, strict=True)
        return total([_scaled(network, path, part) for path, part in pairs]).normalised()

    result.halves = (turned(*halves), turned(*halves[::-1]))
    return result


def _scaled(network: Network, path: PathSum, part: Tensor) -> PathSum:
    scaled = network.scaled(path, lambda: network.like_path(part).square())
    assert scaled is not None
    return scaled
