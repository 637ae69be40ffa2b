"""Zero-cost proxies (zero-cost-nas, NASLib): PX as a measure of an untrained architecture.

Scores of `pxfast.score` are shares, S/R, whose sum says nothing of an architecture. A proxy is the
number itself: the saliencies S, or the bound of the NTK's trace that they are taken from
(docs/method.md, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pxfast.batches import batches, peeked
from pxfast.errors import NoPathError, RangeError
from pxfast.paths.names import named_weights
from pxfast.preparation import prepared

Measure = Literal["px", "px_joint", "px_trace"]
MEASURES: tuple[Measure, ...] = ("px", "px_joint", "px_trace")


def per_layer(
    net: nn.Module,
    data: Any,
    measure: Measure = "px",
    batchnorm: Literal["running", "data"] = "running",
) -> list[Tensor]:
    """Measures every convolution and linear layer of an architecture.

    * "px": the saliencies S_j = θ_j² · ∂R/∂(θ_j²), not divided by R;
    * "px_joint": those of px-joint, θ_j² · ∂J/∂(θ_j²);
    * "px_trace": R's derivatives ∂R/∂(θ_j²), whose sum bounds the trace of the Neural Tangent
      Kernel (`pxfast.ntk_trace_bound`).

    Args:
        net: The architecture; it is left as it is.
        data: What `pxfast.score` takes: a tensor of images is one batch. S and the bound are sums
            over the samples.
        measure: What to measure.
        batchnorm: See `pxfast.score`.

    Returns:
        One float64 tensor per nn.Conv2d and nn.Linear in the order of ``net.modules()``, of its
        weight's shape. Zeros where no path leads through a layer; all of them, where no path
        reaches the output.

    Raises:
        RangeError: If an entry is beyond float64; `proxy` is not.
        NoRuleError: As `pxfast.score`.
    """
    log2, shares = _shares(net, data, measure, batchnorm)
    largest = max((float(share.max()) for share in shares if share.numel()), default=0.0)
    if largest > 0 and log2 + math.log2(largest) >= 1024:
        raise RangeError(
            f"{measure}: the largest entry is 2**{log2 + math.log2(largest):.0f}, beyond float64; "
            f"proxy() returns the logarithm of the sum, which has no such limit"
        )
    return [
        torch.ldexp(share, torch.tensor(math.floor(log2))) * 2 ** (log2 % 1) for share in shares
    ]


def proxy(
    net: nn.Module,
    data: Any,
    measure: Measure = "px",
    batchnorm: Literal["running", "data"] = "running",
) -> float:
    """Measures an architecture by one number: log2 of the sum over all of `per_layer`.

    The logarithm ranks as the sum does, and stays in range for deep architectures.

    Args:
        net: The architecture.
        data: See `per_layer`.
        measure: See `per_layer`.
        batchnorm: See `per_layer`.

    Returns:
        log2 of the sum; -inf where no path reaches the output.

    Raises:
        NoRuleError: As `pxfast.score`.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> round(2 ** proxy(net, torch.tensor([[3.0, 4.0]]), "px_trace"), 3)  # ‖x‖² · 2 weights
        50.0
    """
    log2, shares = _shares(net, data, measure, batchnorm)
    total = math.fsum(float(share.sum()) for share in shares)
    return log2 + math.log2(total) if total > 0 else -math.inf


def register(measure: Callable[..., Any]) -> None:
    """Registers all of `MEASURES` in zero-cost-nas or NASLib, to be asked for by these names.

    Args:
        measure: Their decorator: ``from foresight.pruners.measures import measure``, or
            ``from naslib.predictors.pruners.measures import measure``.
    """
    for name in MEASURES:
        measure(name, bn=True, mode="param")(compute(name))


def compute(name: Measure) -> Callable[..., list[Tensor]]:
    """Returns a function of the form that their decorator takes.

    It is called as ``function(net, inputs, targets, mode="param", loss_fn=…, split_data=1)`` and
    returns `per_layer`. Targets and loss do not count; splitting the data saves memory and changes
    nothing else.
    """

    def measured(
        net: nn.Module,
        inputs: Tensor,
        targets: Any = None,
        mode: str = "param",
        loss_fn: Any = None,
        split_data: int = 1,
    ) -> list[Tensor]:
        if mode != "param":
            raise ValueError(f"{name}: mode must be 'param', one number per weight, got {mode!r}")
        return per_layer(net, list(inputs.chunk(split_data)), name)

    return measured


def _shares(
    net: nn.Module, data: Any, measure: Measure, batchnorm: Literal["running", "data"]
) -> tuple[float, list[Tensor]]:
    """log2 of R or J, and what each layer measures divided by it."""
    if measure not in MEASURES:
        raise ValueError(f"measure: expected one of {', '.join(MEASURES)}, got {measure!r}")
    with prepared(net, data, batchnorm=batchnorm) as passes:
        weights = passes.weights
        weights.purpose = "bound" if measure == "px_trace" else "scores"
        first, stream = peeked(batches(data))
        try:
            # never skipped: where the data cancel from S/R, they still count in S
            joint = measure == "px_joint"
            log2 = passes.joint(stream) if joint else passes.trace(first, stream)
        except NoPathError:
            log2 = 0.0
            weights.forget()
    names = {id(parameter): name for name, parameter in named_weights(weights.model)}
    layers = [m for m in weights.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    found = [weights.saliency.get(names.get(id(layer.weight), "")) for layer in layers]
    return log2, [
        torch.zeros_like(layer.weight, dtype=torch.float64) if share is None else share.double()
        for layer, share in zip(layers, found, strict=True)
    ]
