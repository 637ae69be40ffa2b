"""A masked linear layer of a value and of the path sum beside it, through the same non-zeros.

Dimensions: T tokens (the product of all dimensions but the last), K inputs, O outputs. float32 or
float64, the same for every argument. The op is the 1 × 1 case of `sparse_dual_conv2d`, with tokens
as positions: value and path are transposed to [K, T], the results back to [T, O]. The kernels are
for the CPU; elsewhere the formula runs, two dense products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pxfast import _native
from pxfast.ops._checks import SUMS, check_dtype, check_dual
from pxfast.reference import sparse_dual_linear as reference

_OP = "sparse_dual_linear"
_PAYS_BELOW = 0.05  # of the weights kept
_FEWEST_TOKENS = 128
_LEAST_SIZE = 150  # K·O / (K + O) for each thread of the product that is replaced


def sparse_dual_linear(
    value: Tensor,
    path: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    squared: bool = False,
) -> tuple[Tensor, Tensor]:
    """y = value (W∘M)ᵀ + bias and, in one pass, path_out = path Mᵀ or path (W∘W∘M)ᵀ.

    Its time is that of four transpositions and of what grows with the weights that the mask keeps;
    `sparse_dual_linear_pays` says where it beats the dense way. Besides the results it allocates
    what `sparse_dual_conv2d` does and the transposed value, path and results. Not differentiable.

    Args:
        value: [..., K], float32 or float64; any strides.
        path: path sums [..., K], or size 1 along dimensions in which they are constant; value's
            dtype.
        weight: W [O, K], value's dtype.
        mask: M [O, K], bool; False removes a weight, whatever it holds.
        bias: [O], value's dtype, or None; added to y alone.
        squared: send path sums through W∘W∘M (joint network) instead of M (activation network).

    Returns:
        y and path_out, both [..., O] and contiguous.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument, what was
            expected and what came.

    Example:
        >>> value, path = torch.tensor([[1.0, 2.0]]), torch.ones(1, 1)
        >>> weight = torch.tensor([[3.0, 4.0], [5.0, 6.0]])
        >>> mask = torch.tensor([[True, True], [False, True]])
        >>> y, path_out = sparse_dual_linear(value, path, weight, mask)
        >>> y.tolist(), path_out.tolist()
        ([[11.0, 12.0]], [[2.0, 1.0]])
    """
    _check(value, path, weight, mask, bias)
    empty = 0 in (value.numel(), weight.numel())
    if empty or _native.problem is not None or value.device.type != "cpu":
        y, path_out = reference.sparse_dual_linear(value, path, weight, mask, bias, squared)
        return y.contiguous(), path_out.contiguous()
    if any(size != 1 for size in path.shape[:-1]):
        path = path.expand(*value.shape[:-1], -1)
    y, path_out = torch.ops.pxfast.sparse_dual_conv2d(
        _positions(value), _positions(path), weight[..., None, None], mask[..., None, None], bias,
        [1, 1], [0, 0], [1, 1], squared,
    )  # fmt: skip
    shape = *value.shape[:-1], weight.shape[0]
    return _tokens(y).view(shape), _tokens(path_out).view(shape)


def sparse_dual_linear_pays(value: Tensor, weight: Tensor, density: float) -> bool:
    """Whether `sparse_dual_linear` is expected to beat the dense product of the value, with the
    weights masked first, and `masked_ones_linear` of a full path sum.

    The rule: there are kernels for value's device and dtype, at least 128 tokens, the mask keeps at
    most 5% of the weights, and K·O ≥ 150·n·(K + O) for n threads: transposing moves K + O elements
    a token, on one thread, where n threads would do K·O multiplications. It was measured with one
    and two threads (docs/kernels.md, and `python bench/run.py sparse-dual-linear`); that it holds
    for more is an extrapolation.

    Args:
        value: [..., K].
        weight: [O, K].
        density: share of the weights that the mask keeps.

    Example:
        >>> sparse_dual_linear_pays(torch.ones(100, 768), torch.ones(768, 768), 0.02)
        False
    """
    if _native.problem is not None or value.device.type != "cpu":
        return False
    if value.dtype != weight.dtype or value.dtype not in SUMS:
        return False
    outputs, inputs = weight.shape
    if density > _PAYS_BELOW or value.numel() < _FEWEST_TOKENS * inputs:
        return False
    least = _LEAST_SIZE * torch.get_num_threads()
    return outputs * inputs >= least * (outputs + inputs)


def _positions(x: Tensor) -> Tensor:
    """[..., K] as [1, K, 1, T]. Torch copies transposed matrices, and only those, in blocks."""
    return x.reshape(-1, x.shape[-1]).T.contiguous()[None, :, None]


def _tokens(x: Tensor) -> Tensor:
    """[1, O, 1, T] as [T, O]."""
    return x[0, :, 0].T.contiguous()


def _check(value: Tensor, path: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless the tensors fit."""
    if weight.dim() != 2:
        raise ValueError(f"{_OP}: weight must have shape [O, K], got {list(weight.shape)}")
    check_dtype(_OP, "weight", weight, SUMS)
    inputs = weight.shape[1]
    if value.dim() == 0 or value.shape[-1] != inputs:
        raise ValueError(f"{_OP}: value must have shape [..., {inputs}], got {list(value.shape)}")
    check_dual(_OP, value, path, weight, mask, bias)
