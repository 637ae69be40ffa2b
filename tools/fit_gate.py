"""Fits the polynomials of csrc/cpu/gate_functions.h, and prints them with their errors.

    python tools/fit_gate.py

exp   (eʳ − 1 − r)/r² for |r| ≤ ln 2 / 2, by powers of r.
tail  Φ(−t) e^{t²/2} for t ≥ 0 by powers of u = 1/(1 + t/4) − 1/2: Φ(−t) falls as e^{−t²/2}/t, so
      what is left after the exponential is nearly a straight line in u.

Each is interpolated at Chebyshev's points, which is within a small factor of the best polynomial of
its degree, and evaluated in float32 with the coefficients rounded to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LONGEST = 14.0  # Φ(−t)² is 0 in float32 beyond


def curve_of_exp(r: float) -> float:
    """(eʳ − 1 − r)/r², by its series: the subtractions would cancel."""
    return sum(r**n / math.factorial(n + 2) for n in range(20))


def curve_of_tail(u: float) -> float:
    """Φ(−t) e^{t²/2} where 1/(1 + t/4) = u + 1/2."""
    t = 4 / (u + 0.5) - 4
    return math.erfc(t / math.sqrt(2)) / 2 * math.exp(t * t / 2)


def fit(curve: Callable[[float], float], low: float, high: float, degree: int) -> Array:
    """Coefficients of 1, x, x² … of the polynomial through Chebyshev's points of [low, high]."""
    angles = (np.arange(degree + 1) + 0.5) * math.pi / (degree + 1)
    points = (low + high) / 2 + (high - low) / 2 * np.cos(angles)
    values = np.array([curve(float(x)) for x in points])
    return np.polynomial.Polynomial.fit(points, values, degree).convert().coef


def error(curve: Callable[[float], float], low: float, high: float, coefficients: Array) -> float:
    """The largest relative error, evaluated in float32."""
    x = np.linspace(low, high, 20001).astype(np.float32)
    sums = np.zeros_like(x)
    for coefficient in coefficients[::-1].astype(np.float32):
        sums = sums * x + coefficient
    exact = np.array([curve(float(point)) for point in x])
    return float(np.max(np.abs(sums - exact) / exact))


FITS = {
    "exp": (curve_of_exp, -math.log(2) / 2, math.log(2) / 2, 4),
    "tail": (curve_of_tail, 1 / (1 + LONGEST / 4) - 0.5, 0.5, 9),
}


def main() -> None:
    """Print every fit."""
    for name, (curve, low, high, degree) in FITS.items():
        coefficients = fit(curve, low, high, degree)
        print(f"{name}: relative error {error(curve, low, high, coefficients):.1e}")
        print("  " + ", ".join(f"{c:.9g}f" for c in coefficients.astype(np.float32)))


if __name__ == "__main__":
    main()
