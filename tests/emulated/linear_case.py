"""Arguments of squared_linear for the emulated kernels, and what must come of them in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from emulated import kernels
from emulated.kernels import Array, Order
from tolerances import sum_of_products


class Case:
    """Random arguments of one call, and what must come of them."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        dtype: str,
        masked: bool,
        seed: int = 0,
        precision: str = "highest",
    ):
        tokens, outputs, inputs = sizes
        self.precision = precision
        path = np.float64 if dtype == "float64" else np.float32
        random = np.random.default_rng([seed, *sizes])
        self.dtype, self.terms = path, max(sizes)
        self.x = random.uniform(0, 1, (tokens, inputs)).astype(path)
        self.dy = random.uniform(0, 1, (tokens, outputs)).astype(path)
        self.saliency = random.uniform(0, 1, (outputs, inputs)).astype(path)
        self.weight = as_stored(random.normal(size=(outputs, inputs)), dtype)
        self.mask = random.integers(0, 2, (outputs, inputs), np.uint8) if masked else None
        keep = np.ones((outputs, inputs)) if self.mask is None else self.mask
        self.squared = np.where(keep, as_float64(self.weight) ** 2, 0)
        if self.mask is not None:  # a masked weight counts as 0, whatever it holds
            unused = np.array([np.nan if tokens % 2 else 1000.0])
            self.weight[self.mask == 0] = as_stored(unused, dtype)

    def run(self, order: Order = "forward", small: bool = True) -> tuple[Array, Array, Array]:
        """y, dx and saliency as the kernels compute them."""
        saliency = self.saliency.copy()
        options: dict[str, Any] = {"precision": self.precision, "order": order, "small": small}
        y = kernels.squared_linear(self.x, self.weight, self.mask, **options)
        dx = kernels.squared_linear_backward(
            self.dy, self.x, self.weight, self.mask, saliency, **options
        )
        assert dx is not None
        return y, dx, saliency

    def check(self, y: Array, dx: Array, saliency: Array, tolerance: float | None = None) -> None:
        x, dy = self.x.astype(np.float64), self.dy.astype(np.float64)
        close(y, x @ self.squared.T, self, tolerance)
        close(dx, dy @ self.squared, self, tolerance)
        close(saliency, self.saliency + dy.T @ x * self.squared, self, tolerance)


def as_stored(values: Array, dtype: str) -> Array:
    if dtype != "bfloat16":
        return values.astype(dtype)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def as_float64(stored: Array) -> Array:
    if stored.dtype != np.uint16:
        return stored.astype(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def close(actual: Array, expected: Array, case: Case, tolerance: float | None = None) -> None:
    """Every entry by itself: no term is negative, so it is its sum of magnitudes. NaN fails."""
    path = torch.float64 if case.dtype == np.float64 else torch.float32
    if tolerance is None:
        tolerance = sum_of_products(case.terms, path)
    assert actual.dtype == case.dtype
    assert np.all(np.abs(actual - expected) <= tolerance * expected)
