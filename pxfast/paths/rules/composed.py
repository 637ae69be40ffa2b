"""Functions that torch makes of others, which have rules of their own.

Each is written out here and interpreted; its value is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.paths.network import Network
from pxfast.paths.registry import rule, spellings
from pxfast.paths.rules.activation import out_of_place

Composition = TypeVar("Composition", bound=Callable[..., Tensor])
Written = TypeVar("Written", bound=Callable[..., Any])


def composed(*functions: Any) -> Callable[[Composition], Composition]:
    """Register a composition of other functions as the rule of these."""

    def register(composition: Composition) -> Composition:
        def interpreted(network: Network, func: Any, *args: Any, **kwargs: Any) -> Any:
            from pxfast.paths.tensor import Interpreter

            with Interpreter.running():
                made: Any = composition(*args, **kwargs)
            result = network.tensor(network.value(out_of_place(func), *args, **kwargs), made.path)
            result.opening = made.opening
            return result

        rule(*functions)(interpreted)
        return composition

    return register


def interpreted(*functions: Any) -> Callable[[Written], Written]:
    """Register Python code as the rule of functions whose value it computes, too."""

    def register(written: Written) -> Written:
        def rule_of(network: Network, func: Any, *args: Any, **kwargs: Any) -> Any:
            from pxfast.paths.tensor import Interpreter

            with Interpreter.running():
                return written(*args, **kwargs)

        rule(*functions)(rule_of)
        return written

    return register


@composed(F.normalize)
def normalize(
    input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: None = None
) -> Tensor:
    """Division by a norm: a gate tensor."""
    return input / input.norm(p, dim, keepdim=True).clamp_min(eps)


@composed(F.softmin)
def softmin(input: Tensor, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """A gate tensor, as the softmax is."""
    return torch.softmax(-input, dim, dtype=dtype)


@composed(F.glu)
def glu(input: Tensor, dim: int = -1) -> Tensor:
    """Gate times value: the second half opens the first."""
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


@composed(*spellings("addcmul"))
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """x + c·a·b."""
    return torch.add(input, tensor1 * tensor2, alpha=value)


@composed(*spellings("addcdiv"))
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """x + c·a/b."""
    return torch.add(input, tensor1 / tensor2, alpha=value)


@composed(*spellings("lerp"))
def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """(1 − w)·x + w·y."""
    return input * (1 - weight) + end * weight
