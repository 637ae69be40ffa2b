"""PX as the last version of its authors' code computes it, for comparison only.

The paper's form (`pxfast.reference.px`) and that code differ:

- In both auxiliary networks BatchNorm runs in train mode, on their own batch statistics.
- A parameter or buffer whose name contains "bn" or "fc" is left as it is. All others, biases and
  the scales of other norms included, are squared in g and set to 1 in h.
- Max-pooling is left in place in both. Only `F.relu` (which `torch.nn.ReLU` calls) is gated in h;
  `F.leaky_relu` runs as a ReLU in the real network and in h, and is the identity in g.
- g runs on a batch of ones as large as the data, for every batch; the score is |Σ ∂R/∂(θ²)| θ².

On networks with BatchNorm and global average pooling that gradient is analytically zero: all
samples of the batch of ones are the same, train-mode BatchNorm makes every channel's mean over
space its bias, and so the pooled features depend on no weight before it. What is left is rounding
error, which `noise` shows: computed in float64 the scores shrink by the ratio of the two epsilons.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import prune as torch_prune

Data = Tensor | tuple[Any, ...] | Iterable[Any]

LEFT_ALONE = ("weight_mask", "bias_mask", "bn", "fc")


def score(
    model: nn.Module,
    data: Data,
    masks: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Return the unnormalised scores of the weights of linear and convolution layers.

    A batch costs three forwards (the real network, h, g) and a backward through g, all of the
    batch's size, and a copy of every ReLU's input; a call costs three deep copies of the model.

    Args:
        model: any network; it is not changed. One pruned by torch.nn.utils.prune keeps its masks.
        data: a tensor or a tuple (inputs first) is one batch; anything else iterates over batches.
        masks: 0/1 or bool tensors by parameter name, besides the model's own.
        dtype: what to compute in; None is the model's own type, whose rounding the scores show.
    """
    masked = _with_masks(model, masks or {}, dtype)
    return _score(masked, _batches(masked, data))


def prune(model: nn.Module, data: Data, *, density: float, rounds: int = 100) -> dict[str, Tensor]:
    """Return bool masks after the whole loop: in round r, keep density^(r/rounds) of all weights.

    A round costs one `score`; weights at or below the global threshold are masked (ties all go).
    The masks multiply the weights in every forward, those of the first round included.
    """
    masked = _with_masks(model, {}, None)
    batches = _batches(masked, data)
    for r in range(1, rounds + 1):
        scores = _score(masked, batches)
        flat = torch.cat([s.flatten() for s in scores.values()])
        removed = int((1 - density ** (r / rounds)) * flat.numel())
        if removed < 1:
            continue
        threshold, _ = torch.kthvalue(flat, removed)
        for name, module in _prunable(masked):
            module.weight_mask.copy_(scores[name] > threshold)
    return {name: module.weight_mask.bool() for name, module in _prunable(masked)}


def noise(model: nn.Module, data: Data) -> dict[str, Any]:
    """Compare the scores in float32 with the same in float64.

    Returns:
        layers: for every weight, "float32" and "float64" (the sums of its scores), their "ratio",
            float64 over float32, and the "rank_correlation" (Spearman's) of its entries' scores.
        ratio, rank_correlation: the medians over the layers. Both are 1 for a meaningful score; the
            ratio is about `epsilon_ratio` where the score is nothing but rounding error, and the
            correlation then about 0.75: what two independent noises have in common is θ².
        epsilon_ratio: float64's machine epsilon over float32's, 1.9e-9.
    """
    single = score(model, data, dtype=torch.float32)
    double = score(model, data, dtype=torch.float64)
    layers = {}
    for name, low in single.items():
        high = double[name]
        ranks = torch.stack([s.flatten().argsort().argsort().double() for s in (low, high)])
        total32, total64 = low.double().sum().item(), high.sum().item()
        layers[name] = {
            "float32": total32,
            "float64": total64,
            "ratio": total64 / total32 if total32 else math.nan,
            "rank_correlation": torch.corrcoef(ranks)[0, 1].item(),
        }
    return {
        "layers": layers,
        "ratio": statistics.median(layer["ratio"] for layer in layers.values()),
        "rank_correlation": statistics.median(
            layer["rank_correlation"] for layer in layers.values()
        ),
        "epsilon_ratio": torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps,
    }


def _score(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Return |Σ ∂R/∂(θ²)| θ² of the masked `model`, summed over the batches."""
    g = copy.deepcopy(model).train()
    h = copy.deepcopy(model).train()
    real = copy.deepcopy(model).eval()
    with torch.no_grad():
        for network, change in ((g, lambda t: t.pow_(2)), (h, lambda t: t.fill_(1))):
            for name, tensor in network.state_dict().items():
                if not any(part in name for part in LEFT_ALONE):
                    change(tensor)
    relu = F.relu
    inputs: list[Tensor] = []

    def record(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        inputs.append(x.clone().detach())
        return relu(x)

    def apply_gate(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x * torch.where(inputs.pop(0) > 0, 1.0, 0.0).to(x.dtype)

    def leave_open(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x

    for x in batches:
        inputs.clear()
        with torch.no_grad():
            with _activations(record, record):
                real(x)
            with _activations(apply_gate, record):
                h_out = h(x**2)
        with _activations(leave_open, leave_open):
            g_out = g(torch.ones_like(x))
        (h_out * g_out).sum().backward()

    squares = dict(_prunable(g))
    scores = {}
    for name, module in _prunable(model):
        gradient = squares[name].weight_orig.grad
        theta = module.weight_orig.detach()
        scores[name] = torch.zeros_like(theta) if gradient is None else gradient.abs() * theta**2
    return scores


@contextmanager
def _activations(relu: Callable[..., Tensor], leaky_relu: Callable[..., Tensor]) -> Iterator[None]:
    """Replace F.relu and F.leaky_relu everywhere while the context lasts."""
    saved = F.relu, F.leaky_relu
    F.relu, F.leaky_relu = relu, leaky_relu
    try:
        yield
    finally:
        F.relu, F.leaky_relu = saved


def _with_masks(
    model: nn.Module, masks: Mapping[str, Tensor], dtype: torch.dtype | None
) -> nn.Module:
    """Return a copy whose prunable layers hold `weight_orig` and `weight_mask` (default ones)."""
    computed = [t for m in model.modules() for t in vars(m).values()
                if isinstance(t, Tensor) and not t.is_leaf]  # fmt: skip
    model = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})
    model = model.to(dtype=dtype).requires_grad_()
    layers = dict(_prunable(model))
    for name, mask in masks.items():
        expected = list(layers[name].weight.shape) if name in layers else "no such layer"
        if list(mask.shape) != expected:
            raise ValueError(f"mask {name!r}: expected {expected}, got {list(mask.shape)}")
    with torch.no_grad():
        for name, module in layers.items():
            mask = masks.get(name, torch.ones_like(module.weight)).to(module.weight)
            torch_prune.custom_from_mask(module, "weight", mask)
    return model


def _prunable(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the linear and convolution layers by the names of their weights."""
    return [
        (f"{name}.weight" if name else "weight", module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | _ConvNd)
    ]


def _batches(model: nn.Module, data: Data) -> list[Tensor]:
    """Return the inputs of every batch in the model's type and on its device."""
    parameter = next(model.parameters())
    batches = [data] if isinstance(data, Tensor | tuple) else list(data)
    return [(b if isinstance(b, Tensor) else b[0]).to(parameter) for b in batches]
