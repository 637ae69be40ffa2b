"""Where path sums start and end: at the inputs, and at the outputs that R and J add up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pxfast.paths.pathsum import PathSum

End = tuple[PathSum, tuple[int, ...]]  # the path sum of an output, and its full shape


def square(x: Tensor) -> Tensor:
    """Where paths of h and J start: x²."""
    return x.square()


def ones(x: Tensor) -> Tensor:
    """Where paths of g start: 1, constant along every dimension of x."""
    return x.new_ones([1] * x.dim())


def over_samples(end: End) -> PathSum:
    """Σ_n: a path sum of shape [1, …], narrow where the output is."""
    path, shape = end
    if path.mantissa.shape[0] == 1:
        return path.times(float(shape[0]))
    return path.map(lambda m: m.sum(0, keepdim=True, dtype=torch.float64).to(m.dtype)).normalised()


def inner(end: End, s: PathSum | None) -> PathSum:
    """Σ_k s_k g_k for one output, as a scalar; s = 1 where it is not given."""
    path, shape = end
    mantissa, exponent = path.mantissa, path.exponent
    if s is not None:
        mantissa, exponent = mantissa * s.mantissa, exponent + s.exponent
    repeats = math.prod(shape) / max(1, mantissa.numel()) * (mantissa.numel() > 0)
    return PathSum(mantissa.double().sum() * repeats, exponent)
