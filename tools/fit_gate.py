"""Fits the polynomials of csrc/cpu/gate_functions.h and gate_float.h, and prints them with errors.

    python tools/fit_gate.py

exp     (eʳ − 1 − r)/r² for |r| ≤ ln 2 / 2, by powers of r.
exp2    (2ᶠ − 1)/f for |f| ≤ 1/2, where 2ᶠ counts.
expm1   the same, where 2ᶠ − 1 counts.
tail    −log₂ Φ(−t) for 0 ≤ t ≤ 8.5; an error of Φ(−t) may be 10 times as large in parts of
        itself as of 1.

Each is the polynomial whose largest error, in units of what is allowed there, is smallest, but for
the rounding of its coefficients. The errors are those of the function that it serves: of eʳ, 2ᶠ,
(2ᶠ − 1)/f and Φ(−t), evaluated in float32 with fused multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]

LONGEST = 8.5  # Φ(−t)² is 10⁻³⁴ there


def each(function: Callable[[float], float]) -> Function:
    """The function of arrays that one of numbers makes."""
    return np.vectorize(function, otypes=[np.float64])


@each
def curve_of_exp(r: float) -> float:
    """(eʳ − 1 − r)/r², by its series: the subtractions would cancel."""
    return sum(r**n / math.factorial(n + 2) for n in range(20))


@each
def curve_of_exp2(f: float) -> float:
    """(2ᶠ − 1)/f."""
    return math.expm1(f * math.log(2)) / f if f else math.log(2)


@each
def tail(t: float) -> float:
    """Φ(−t)."""
    return math.erfc(t / math.sqrt(2)) / 2


class Fit(NamedTuple):
    """A polynomial that is looked for."""

    curve: Function
    low: float
    high: float
    degree: int
    allowed: Function  # error of the curve at x
    served: Callable[[Array, Array], Array]  # the function, from x and the curve


FITS = {
    "exp": Fit(
        curve_of_exp,
        -math.log(2) / 2,
        math.log(2) / 2,
        4,
        lambda r: np.exp(r) / np.maximum(r * r, 1e-9),
        lambda r, c: 1 + r + r * r * c,
    ),
    "exp2": Fit(
        curve_of_exp2,
        -0.5,
        0.5,
        4,
        lambda f: np.exp2(f) / np.maximum(abs(f), 1e-9),
        lambda f, c: 1 + f * c,
    ),
    "expm1": Fit(curve_of_exp2, -0.5, 0.5, 5, curve_of_exp2, lambda f, c: c),
    "tail": Fit(
        lambda t: -np.log2(tail(t)),
        0.0,
        LONGEST,
        11,
        lambda t: np.minimum(10, 1 / tail(t)),
        lambda t, c: np.exp2(-c),
    ),
}


def coefficients_of(fit: Fit, rounds: int = 400) -> Array:
    """Coefficients of 1, x, x² …, by Lawson's weights: those of large errors grow."""
    angles = np.linspace(0, math.pi, 2001)
    x = (fit.low + fit.high) / 2 - (fit.high - fit.low) / 2 * np.cos(angles)
    y, allowed, weights = fit.curve(x), fit.allowed(x), np.ones_like(x)
    for _ in range(rounds):
        polynomial = np.polynomial.Chebyshev.fit(
            x, y, fit.degree, w=np.sqrt(weights) / allowed, domain=[fit.low, fit.high]
        )
        error = abs(polynomial(x) - y) / allowed
        weights *= error
        weights /= weights.sum()
    return polynomial.convert(kind=np.polynomial.Polynomial).coef


def errors(fit: Fit, coefficients: Array) -> tuple[float, float]:
    """The largest relative and absolute error of the function that is served."""
    x = np.linspace(fit.low, fit.high, 20001).astype(np.float32).astype(np.float64)
    sums = np.zeros_like(x)
    for coefficient in coefficients[::-1].astype(np.float32):
        sums = (sums * x + coefficient).astype(np.float32).astype(np.float64)
    exact = fit.served(x, fit.curve(x))
    off = abs(fit.served(x, sums) - exact)
    return float(np.max(off / exact)), float(np.max(off))


def main() -> None:
    """Print every fit."""
    for name, fit in FITS.items():
        coefficients = coefficients_of(fit)
        relative, absolute = errors(fit, coefficients)
        print(f"{name}: error {relative:.1e} of itself, {absolute:.1e} of 1")
        print("  " + ", ".join(f"{c:.9g}f" for c in coefficients.astype(np.float32)))


if __name__ == "__main__":
    main()
