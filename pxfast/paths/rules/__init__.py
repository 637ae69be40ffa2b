"""The rules, one file per family of operations (SPEC section 4). Importing this package registers
them."""

from pxfast.paths.rules import (
    activation,
    arithmetic,
    attention,
    complex,
    composed,
    convolution,
    einsum,
    linear,
    matmul,
    metadata,
    multihead,
    norm,
    pooling,
    shape,
)

__all__ = [
    "activation", "arithmetic", "attention", "complex", "composed", "convolution", "einsum",
    "linear", "matmul", "metadata", "multihead", "norm", "pooling", "shape",
]  # fmt: skip
