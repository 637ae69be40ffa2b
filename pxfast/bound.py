"""ntk_trace_bound(): the bound of the Neural Tangent Kernel's trace that PX scores take apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pxfast.batches import batches, peeked, progress_bar
from pxfast.errors import RangeError
from pxfast.paths.outputs import Select
from pxfast.preparation import prepared


def ntk_trace_bound(
    model: nn.Module,
    data: Any,
    *,
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: Literal["running", "data"] = "running",
    output: Select = None,
    dtype: torch.dtype | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> float:
    """Bound the trace of the Neural Tangent Kernel: Σ_{n,k} h_k(x_n) · Σ_j ∂g_k/∂(θ_j²).

    It bounds Σ_{n,k} ‖∂f_k(x_n)/∂θ‖² over the weights that are kept, where the network is made of
    linear layers and convolutions without biases, (leaky) ReLU, pooling and constants.

    Args:
        model: as for `pxfast.score`.
        data: as for `pxfast.score`; the bound is a sum over all samples.
        masks: as for `pxfast.score`.
        batchnorm: as for `pxfast.score`.
        output: as for `pxfast.score`.
        dtype: as for `pxfast.score`.
        max_memory: as for `pxfast.score`.
        progress: as for `pxfast.score`.

    Returns:
        The bound, a float64 number.

    Raises:
        RangeError: it is beyond 1.8e308, as for a deep network with large weights.
        PxfastError: as `pxfast.score`.

    Source: Iurada, Ciccone, Tommasi, CVPR 2024, arXiv 2406.01820.

    Example:
        >>> import torch, pxfast
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> round(pxfast.ntk_trace_bound(model, torch.tensor([[3.0, 4.0]])), 3)  # ‖x‖² · 2 weights
        50.0
    """
    with prepared(
        model,
        data,
        masks=masks,
        batchnorm=batchnorm,
        output=output,
        dtype=dtype,
        max_memory=max_memory,
    ) as passes:
        passes.weights.purpose = "bound"
        first, stream = peeked(batches(progress_bar(data, "bound", progress)))
        log2 = passes.trace(first, stream)
    buffers = passes.weights.saliency.values()
    total = sum(float(buffer.sum(dtype=torch.float64)) for buffer in buffers)
    if log2 + math.log2(total) >= 1024:
        raise RangeError(
            f"the bound is 2**{log2 + math.log2(total):.0f}, beyond float64; the scores of "
            "pxfast.score are ratios and stay in range"
        )
    return total * 2.0**log2
