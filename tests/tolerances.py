"""Every tolerance of the tests, with its derivation. Nothing is loosened to make a run green.

u = eps/2 is the unit roundoff of a dtype. All terms of a path sum are non-negative, so nothing
cancels: a sum of K terms is off by at most K·u relative, and a chain of L layers by the sum over
the layers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Assert max |actual - expected| <= tolerance · max |expected|, in float64; NaN fails.

    Relative to the largest entry: entries of one tensor come from sums of the same terms.
    """
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    if actual.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max()
    scale = expected.double().abs().max()
    assert error <= tolerance * scale, (
        f"{what}: off by {error / scale:.2e}, allowed {tolerance:.2e}"
    )


_U32, _U64 = torch.finfo(torch.float32).eps / 2, torch.finfo(torch.float64).eps / 2

# Scores of the small test networks: at most 8 layers of at most 50 terms each, forward and
# backward, and R over at most 100 entries: (2·8·50 + 100)·u. Gates (erf, exp, divisions by σ²+ε)
# add tens of u a layer.
SMALL_NET = {torch.float32: 1000 * _U32, torch.float64: 1000 * _U64}

# Scores of ResNet-20 and VGG-16: at most 20 layers of 4608 terms each in blocked sums (error about
# log2(K) + 64 terms), forward and backward: 2·20·80·u, and the reference's own float64 is exact
# in comparison.
DEEP_NET = {torch.float32: 3200 * _U32, torch.float64: 3200 * _U64}


def sum_of_products(terms: int, dtype: torch.dtype) -> float:
    """Of an op that adds `terms` products with a squared weight, relative to the sum of magnitudes.

    Each term is rounded at most terms + 3 times, in any order of additions: the square, the
    product, terms − 1 additions, a last multiplication and a last addition. So γₙ = n·u / (1 − n·u)
    with n = terms + 3 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    n = (terms + 3) * torch.finfo(dtype).eps / 2
    return n / (1 - n)


def split_products(terms: int, precision: str = "highest") -> float:
    """The same of squared_linear on tensor cores (csrc/cuda/mma_tile.cuh), in float32.

    highest: factors are split into bf16 pieces that add up to them, each at most 2^-8 of the one
    before; what products of small pieces are left out is less than 3 u of the term (u = 2^-24). A
    tensor core adds 16 products to a sum "with at least single precision", taken here as: each of
    the 17 and the result is cut off at 24 digits of the largest, 18 · 2u of the magnitudes; what
    was added before are products of smaller pieces, 2^-7 of it. So 38 u for 16 terms. Those sums
    are rounded terms / 16 times, and as often at most as planes of splits; a square, and the
    saliency's square, product and addition add 5. From 64 terms on, where the kernels are used,
    this is less than `sum_of_products`. Numbers below 2^-110, whose last pieces underflow, are not
    covered.

    high: two pieces leave at most 2^-16 of either factor, and the product of the second ones, left
    out, is as small: 3 · 2^-16 of the term besides.

    medium: both factors are rounded to the 8 digits of a bf16, (1 + 2^-8)² - 1 of the term. Sums
    stay in the tensor core: 36 u of them for every 16 terms. From 58 000 terms on that is more.
    """
    n = (terms / 8 + 46) * _U32
    if precision == "high":
        n += 3 * 2**-16
    elif precision == "medium":
        n = (2.25 * terms + 46) * _U32 + 2**-7 + 2**-16
    return n / (1 - n)


# The references against each other on tiny networks, entry by entry, in float64: every entry is a
# sum of at most 10^4 non-negative path terms with at most 20 factors each (10^4 + 20 roundings);
# variances and smooth gates, whose subtractions amplify by less than 10^2, stay below that.
TINY_REFERENCES = 10_100 * _U64

# Identities that change the order of a float64 sum over the reference's layers: at most 20 layers
# of at most 100 terms, forward and backward.
REORDERED = 4000 * _U64

# Scores of deep architectures in float64: at most 500 operations of a few thousand terms each,
# blocked (about 80 u an operation), forward and backward, in the engine and in the reference.
ARCHITECTURE = 2 * 2 * 500 * 80 * _U64

# Scores in float64 of a network that casts to float32 for its attention: four products of at most
# 64 terms in each of two stages, forward and backward, in the engine and in the reference.
IN_FLOAT32 = 2 * 2 * 2 * 4 * 64 * _U32

# Scores of deep architectures in float32 against float64, by the same count. Besides, a gate whose
# z is 0 within rounding may be open in one and shut in the other: one of 10^4 and more in its
# layer, so what changes is less.
DEEP_ARCHITECTURE = 2 * 500 * 80 * _U32


# Gradients of a loss and products of them with a Hessian, in float64 on networks of at most 8
# layers # of at most 50 terms: (2·8·50)·u for each of up to three passes. Signed terms cancel, by
# less than # a factor 10^4 between the largest term and the largest entry.
CANCELLING = 3 * 800 * 10**4 * _U64


# One gate φ(z)/z or φ'(z) of size up to about 1: a handful of roundings, the rounding of special
# functions (4 u each), and where it is 1 minus a quotient (tanhshrink) the rounding of that 1.
GATE = {torch.float32: 16 * _U32, torch.float64: 16 * _U64}

# The op `gate`, float32. Gates: the argument of an exponential is off by a few u of itself, and
# where the gate is 1e-12 (its square 1e-24) that argument is about 28, so e^x is off by 28 · 4 u,
# the rest by some 10 u; the square doubles it: 2 · (112 + 10)·u. Below a gate of 1e-12 its square
# counts as 0: at most 1e-24 off. float64: the same in its u.
GATE_OF_OP = {torch.float32: 250 * _U32, torch.float64: 250 * _U64}
GATE_OF_OP_TINY = 1e-24

# A sum of gated path sums over channels, one at a time: a rounding of the sum so far for each.
GATE_SUM = {torch.float32: _U32, torch.float64: _U64}

# Its values: z times a gate that is off by 5 u of 1 at most where it is no small number (a
# polynomial of degree 9, its fit 3 u, a quotient), one more rounding, and for a sum such as
# z + 3 another; relative to |z|, or to 1 where the activation is bounded away from z (sigmoids).
VALUE_OF_OP = {torch.float32: 8 * _U32, torch.float64: 8 * _U64}


def stored(dtype: torch.dtype) -> float:
    """Of rounding a value to 16 bits once, relative; 0 for dtypes that arithmetic is done in."""
    return torch.finfo(dtype).eps / 2 if torch.finfo(dtype).bits == 16 else 0.0


def attention(features: int, terms: int, largest: float, dtype: torch.dtype) -> float:
    """Of squared_attention's results, relative to the sum of the terms' magnitudes.

    A logit, a sum of `features` products with a scale and a mask, whose magnitudes add up to
    `largest` at most, is off by (features + 4)·u·largest, and its exponential by as much, relative;
    so is that of the row's largest. An exponential adds 4 u of its own, a sum of `terms` of them
    terms·u, the quotient 2 u. Squared: twice all that. The last sum of `terms` products, rescaled
    whenever a row's maximum grows (4 u and less than terms / 16 times), adds terms + terms / 4.
    """
    u = torch.finfo(dtype).eps / 2
    logit = 2 * (features + 4) * u * largest
    return 2 * (logit + (terms + 6) * u) + (1.25 * terms + 10) * u
