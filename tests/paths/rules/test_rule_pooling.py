"""Pooling of every kind, dimension and spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from middles import Case, Rule, as_it_is, check, linear, of
from tolerances import DEEP_NET, close
from torch import Tensor, nn

import pxfast
from pxfast import _native, ops
from pxfast.errors import NoRuleError
from pxfast.paths.rules import pooling

VECTOR, SIGNAL, IMAGE, VOLUME = (4,), (3, 8), (3, 6, 5), (2, 4, 4, 5)


def largest(operation: Callable[[Tensor], Tensor], shape: tuple[int, ...], sign: int = 1) -> Case:
    """Max-pooling: h and the joint network follow the entry that was picked, g adds the window.

    Both are read off the operation: its derivative says which entry is picked, its response to unit
    vectors which entries a window holds. `sign` is −1 where the smallest entry is picked.
    """

    def picked(path: Tensor, z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        outputs = operation(z).flatten(1)
        slopes = [torch.autograd.grad(outputs[:, k].sum(), z, retain_graph=True)[0]
                  for k in range(outputs.shape[1])]  # fmt: skip
        return torch.stack([(path * slope).flatten(1).sum(1) for slope in slopes], 1)

    def window(path: Tensor) -> Tensor:
        units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
        inside = operation(sign * units).flatten(1).abs()
        return path.flatten(1) @ inside

    return of(operation, shape, Rule(picked, window, picked))


def first(function: Callable[..., Any], *arguments: Any, **named: Any) -> Callable[[Tensor], Any]:
    """The entries alone of a function that also returns where they were."""
    return lambda x: function(x, *arguments, **named)[0]


def excite(x: Tensor) -> Tensor:
    """Global pooling of both kinds, side by side."""
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


MAX_POOLS = {1: (F.max_pool1d, torch.max_pool1d), 2: (F.max_pool2d, torch.max_pool2d),
             3: (F.max_pool3d, torch.max_pool3d)}  # fmt: skip
AVERAGE_POOLS = {1: (F.avg_pool1d, torch.avg_pool1d), 2: (F.avg_pool2d,), 3: (F.avg_pool3d,)}
SHAPES = {1: SIGNAL, 2: IMAGE, 3: VOLUME}
WITH_INDICES = {
    1: (F.max_pool1d_with_indices, F.adaptive_max_pool1d_with_indices, torch.adaptive_max_pool1d),
    2: (F.max_pool2d_with_indices, F.adaptive_max_pool2d_with_indices),
    3: (F.max_pool3d_with_indices, F.adaptive_max_pool3d_with_indices),
}
MAX_GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 2},
    "overlapping": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 2, "stride": 1, "dilation": 2},
    "ceil_mode": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "ceil_mode, padded": {"kernel_size": 3, "stride": 3, "padding": 1, "ceil_mode": True},
}
AVERAGE_GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 2},
    "overlapping, padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "padding left out": {
        "kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False
    },
    "ceil_mode": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "ceil_mode, padded": {"kernel_size": 3, "stride": 3, "padding": 1, "ceil_mode": True},
}  # fmt: skip
ADAPTIVE = {
    1: (F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, F.adaptive_max_pool1d, (3,)),
    2: (F.adaptive_avg_pool2d, None, F.adaptive_max_pool2d, (4, 2)),
    3: (F.adaptive_avg_pool3d, None, F.adaptive_max_pool3d, (3, 1, 2)),
}
CASES = {
    **{
        f"max {dims}d, {name}, {function.__module__}": largest(
            lambda x, function=function, named=named: function(x, **named), SHAPES[dims]
        )
        for dims, functions in MAX_POOLS.items()
        for name, named in MAX_GEOMETRIES.items()
        for function in functions[: 1 if name != "overlapping" else 2]
    },
    **{
        f"average {dims}d, {name}, {function.__module__}": linear(
            lambda x, function=function, named=named: function(x, **named), SHAPES[dims]
        )
        for dims, functions in AVERAGE_POOLS.items()
        for name, named in AVERAGE_GEOMETRIES.items()
        for function in functions[: 1 if name != "plain" else 2]
    },
    **{
        f"indices too, {torch.overrides.resolve_name(function)}": largest(
            first(function, 2), SHAPES[dims]
        )
        for dims, functions in WITH_INDICES.items()
        for function in functions
    },
    **{
        f"return_indices {dims}d": largest(
            first(functions[0], 3, 2, return_indices=True), SHAPES[dims]
        )
        for dims, functions in MAX_POOLS.items()
    },
    **{
        f"adaptive average {dims}d": linear(
            lambda x, function=function, size=size: function(x, size), SHAPES[dims]
        )
        for dims, (function, _, _, size) in ADAPTIVE.items()
    },
    **{
        f"adaptive max {dims}d": largest(
            lambda x, function=function, size=size: function(x, size), SHAPES[dims]
        )
        for dims, (_, _, function, size) in ADAPTIVE.items()
    },
    "torch.adaptive_avg_pool1d": linear(lambda x: torch.adaptive_avg_pool1d(x, 3), SIGNAL),
    "adaptive max, indices": largest(first(F.adaptive_max_pool2d, 2, return_indices=True), IMAGE),
    "divisor_override": linear(lambda x: F.avg_pool2d(x, 2, divisor_override=3), IMAGE),
    "MaxPool1d": Case(lambda: nn.MaxPool1d(2), SIGNAL),
    "MaxPool2d, uneven": Case(
        lambda: nn.MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), IMAGE
    ),
    "MaxPool3d": Case(lambda: nn.MaxPool3d(2, ceil_mode=True), VOLUME),
    "AvgPool1d": Case(lambda: nn.AvgPool1d(3, 2, 1), SIGNAL),
    "AvgPool2d, uneven": Case(lambda: nn.AvgPool2d((3, 2), (2, 1), (0, 1)), IMAGE),
    "AvgPool3d": Case(lambda: nn.AvgPool3d(2, count_include_pad=False, padding=1), VOLUME),
    "AdaptiveAvgPool2d, one side kept": Case(lambda: nn.AdaptiveAvgPool2d((None, 2)), IMAGE),
    "AdaptiveMaxPool2d, one side kept": Case(lambda: nn.AdaptiveMaxPool2d((2, None)), IMAGE),
    "AdaptiveMaxPool1d": Case(lambda: nn.AdaptiveMaxPool1d(3), SIGNAL),
    "AdaptiveMaxPool3d": Case(lambda: nn.AdaptiveMaxPool3d(2), VOLUME),
    "max-pooling of max-pooling": Case(
        lambda: nn.Sequential(nn.MaxPool2d(2, 1), nn.MaxPool2d(2, 1)), IMAGE
    ),
    "max unbatched": of(
        lambda x: torch.stack([F.max_pool2d(x[i], 2) for i in range(x.shape[0])]),
        IMAGE,
        largest(lambda x: F.max_pool2d(x, 2), IMAGE).expected,
    ),
    "average unbatched": linear(
        lambda x: torch.stack([F.avg_pool2d(x[i], 2) for i in range(len(x))]), IMAGE
    ),
    "global mean": linear(lambda x: x.mean((2, 3)), IMAGE),
    "global mean, kept": linear(lambda x: torch.mean(x, dim=[-1, -2], keepdim=True), IMAGE),
    "mean over channels": linear(lambda x: x.mean(1), IMAGE),
    "mean of everything": linear(lambda x: x.flatten(1).mean(dim=1, keepdim=True), IMAGE),
    "sum": linear(lambda x: x.sum(1).sum(-1), IMAGE),
    "sum, both": linear(lambda x: torch.sum(x, (1, 3), True), IMAGE),
    "nanmean": linear(lambda x: torch.nanmean(x, 2) + x.nanmean(2), IMAGE),
    "nansum": linear(lambda x: torch.nansum(x, -1) + x.nansum(-1), IMAGE),
    "amax": largest(lambda x: x.amax((2, 3)), IMAGE),
    "amax, kept": largest(lambda x: torch.amax(x, (-1, 1), keepdim=True), IMAGE),
    "max": largest(lambda x: x.max(-1)[0], IMAGE),
    "torch.max": largest(lambda x: torch.max(x, dim=1, keepdim=True).values, IMAGE),
    "amin": largest(lambda x: x.amin((2, 3)), IMAGE, -1),
    "torch.amin": largest(lambda x: torch.amin(x, 1), IMAGE, -1),
    "min": largest(lambda x: x.min(dim=2).values, IMAGE, -1),
    "torch.min": largest(lambda x: torch.min(x, 3)[0], IMAGE, -1),
    "maximum": largest(lambda x: torch.maximum(x[:, :2], x[:, 1:]), IMAGE),
    "Tensor.maximum": largest(lambda x: x[:, :2].maximum(x[:, 1:]), IMAGE),
    "max of two": largest(lambda x: torch.max(x[:, :2], x[:, 1:]), IMAGE),
    "Tensor.max of two": largest(lambda x: x[:, :2].max(x[:, 1:]), IMAGE),
    "fmax": largest(lambda x: torch.fmax(x[:, :2], x[:, 1:]), IMAGE),
    "Tensor.fmax": largest(lambda x: x[:, :2].fmax(x[:, 1:]), IMAGE),
    "minimum": largest(lambda x: torch.minimum(x[:, :2], x[:, 1:]), IMAGE, -1),
    "Tensor.minimum": largest(lambda x: x[:, :2].minimum(x[:, 1:]), IMAGE, -1),
    "min of two": largest(lambda x: torch.min(x[:, :2], x[:, 1:]), IMAGE, -1),
    "Tensor.min of two": largest(lambda x: x[:, :2].min(x[:, 1:]), IMAGE, -1),
    "fmin": largest(lambda x: torch.fmin(x[:, :2], x[:, 1:]), IMAGE, -1),
    "Tensor.fmin": largest(lambda x: x[:, :2].fmin(x[:, 1:]), IMAGE, -1),
    "maximum with zeros": of(
        lambda x: torch.maximum(x, torch.zeros_like(x)), IMAGE,
        Rule(lambda p, z: p * (z > 0), lambda p: p, lambda p, z: p * (z > 0)),
    ),
    "maximum with a constant": of(
        lambda x: torch.maximum(torch.tensor(0.0).to(x), x), IMAGE,
        Rule(lambda p, z: p * (z > 0), lambda p: p, lambda p, z: p * (z > 0)),
    ),
    "average and largest": of(
        excite, IMAGE,
        Rule(*(
            lambda p, *z, i=i: torch.cat([
                as_it_is(lambda x: x.mean((2, 3)), IMAGE)[i](p, *z).flatten(1),
                largest(lambda x: x.amax((2, 3)), IMAGE).expected[i](p, *z).flatten(1),
            ], 1)
            for i in range(3)
        )),
    ),
    "a stable softmax is a gate": of(
        lambda x: x * torch.exp(x - x.amax(1, keepdim=True)), IMAGE,
        Rule(
            lambda p, z: p * torch.exp(z - z.amax(1, keepdim=True)) ** 2, lambda p: p,
            lambda p, z: p * torch.exp(z - z.amax(1, keepdim=True)) ** 2,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    check(CASES[name])


@pytest.mark.parametrize(
    ("pool", "shape", "message"),
    [
        (nn.LPPool1d(2, 2), SIGNAL, r"lp_pool1d with norm 2"),
        (nn.LPPool2d(1, 2), IMAGE, r"lp_pool2d with norm 1"),
        (nn.LPPool3d(3, 2), VOLUME, r"lp_pool3d with norm 3"),
        (nn.FractionalMaxPool2d(2, output_size=2), IMAGE, r"fractional_max_pool2d.*has no rule"),
    ],
    ids=str,
)
def test_pooling_that_is_no_sum_over_paths_is_an_error(pool, shape, message):
    layer = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)](2, shape[0], 1)
    model = nn.Sequential(layer, pool, nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(2, 2, *shape[1:])
    model(x)
    with pytest.raises(NoRuleError, match=message):
        pxfast.score(model, x, criterion="px-joint")


class Pooled(nn.Module):
    """A convolution, max-pooling as given, and a layer behind it."""

    def __init__(self, **options: Any):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.LazyLinear(2)
        self.pool = nn.MaxPool2d(3, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.first(x).relu()).flatten(1))


@pytest.mark.parametrize(
    ("options", "channels_last", "times"),
    [
        ({"padding": 1}, False, 1),
        ({"dilation": 2}, False, 0),
        ({"ceil_mode": True}, False, 0),
        ({"padding": 1}, True, 0),  # the model may count on that layout
    ],
    ids=str,
)
def test_the_data_pass_pools_value_and_path_in_one_read(monkeypatch, options, channels_last, times):
    torch.manual_seed(3)
    model, x = Pooled(**options), torch.randn(2, 3, 10, 12)
    model(x)
    if channels_last:
        model, x = (each.to(memory_format=torch.channels_last) for each in (model, x))
    masks = {"last.weight": torch.rand(model.last.weight.shape) < 0.7}
    calls = []
    op = ops.dual_max_pool2d
    monkeypatch.setattr(ops, "dual_max_pool2d", lambda *args: calls.append(1) or op(*args))
    found = pxfast.score(model, x, masks=masks)
    assert len(calls) == times * (_native.problem is None)
    monkeypatch.setattr(pooling, "_pools_in_one_pass", lambda *_: False)
    for name, expected in pxfast.score(model, x, masks=masks).items():
        close(found[name], expected, DEEP_NET[torch.float32], name)
