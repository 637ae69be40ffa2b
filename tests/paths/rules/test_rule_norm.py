"""Normalisation layers, and norms that models write by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from middles import Case, check, gate, network, of
from nets import random_batch, random_masks
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.paths.registry import spellings

SIGNAL, IMAGE, VOLUME = (4, 5), (4, 3, 4), (4, 2, 3, 2)
DATA = {"batchnorm": "data"}


class Own(nn.Module):
    """A function of the input and of a scale and shift of its own."""

    def __init__(self, function: Callable[..., Any], *shape: int, shift: bool = True) -> None:
        super().__init__()
        count = math.prod(shape)
        self.scale = nn.Parameter(torch.linspace(-0.9, 1.3, count).view(shape))
        self.shift = nn.Parameter(torch.linspace(0.1, 0.5, count).view(shape)) if shift else None
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.scale, self.shift)


class Running(Own):
    """The same with running statistics."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, 4)
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, 4))
        self.register_buffer("variance", torch.linspace(0.5, 1.5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.scale, self.shift, self.mean, self.variance)


def as_batch_norm(function: Callable[..., Any], shape: Any = IMAGE) -> Case:
    """A function of BatchNorm's five tensors that must score as F.batch_norm does."""
    return Case(
        lambda: Running(function),
        shape,
        lambda: Running(lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b)),
    )


def rms(x: Tensor, dims: Any = -1, eps: float = 0.0) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + eps)


EPS64 = torch.finfo(torch.float64).eps


def by_hand(function: Callable[[Tensor], Tensor], gates: Callable[[Tensor], Tensor]) -> Case:
    """A norm written by hand, and what it multiplies the value path by."""
    return of(function, IMAGE, gate(lambda z: gates(z) ** 2))


def two_lines(x: Tensor) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    variance = (x - mean).pow(2).mean((1, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


def in_place(x: Tensor) -> Tensor:
    x = x.clone()
    scale = x.std(1, keepdim=True)
    x -= x.mean(1, keepdim=True)
    x /= scale
    return x


def reshaped_mean(x: Tensor) -> Tensor:
    mean = torch.mean(x, (2, 3)).view(-1, 4, 1, 1)
    return (x - mean.expand_as(x)) * x.var((2, 3), keepdim=True).add(1e-5).rsqrt()


def flat_mean(x: Tensor) -> Tensor:
    mean = x.mean((2, 3))[..., None, None]
    return x.sub(mean)


def var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def std_mean(x: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x, dim=(2, 3), keepdim=True)
    return (x - mean).div_(deviation + 1e-5)


def grn(x: Tensor, scale: Tensor, shift: Any) -> Tensor:
    """Global response normalisation, as ConvNeXt V2 has it."""
    norm = x.norm(p=2, dim=(2, 3), keepdim=True)
    norm = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
    return x + torch.addcmul(shift.view(1, -1, 1, 1), scale.view(1, -1, 1, 1), x * norm)


def grn_in_reference(x: Tensor, scale: Tensor, shift: Any) -> Tensor:
    norm = x.norm(p=2, dim=(2, 3), keepdim=True)
    norm = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
    return x + (scale.view(1, -1, 1, 1) * (x * norm) + shift.view(1, -1, 1, 1))


def everywhere(name: str, *arguments: Any, **named: Any) -> dict[str, Case]:
    """Every spelling of a function, of the tensor's deviation or of the tensor: a factor."""
    reduces = bool(arguments or named) and name != "pow"

    def factor(function: Callable[..., Any], z: Tensor) -> Tensor:
        return function(z if reduces else z.std(1, keepdim=True) * 1, *arguments, **named)

    return {
        f"x * {torch.overrides.resolve_name(function)}": by_hand(
            lambda x, function=function: x * factor(function, x),
            lambda z, function=function: factor(function, z),
        )
        for function in spellings(name)
    }


CASES = {
    "BatchNorm1d of vectors": Case(lambda: nn.BatchNorm1d(4)),
    "BatchNorm1d": Case(lambda: nn.BatchNorm1d(4), SIGNAL),
    "BatchNorm2d": Case(lambda: nn.BatchNorm2d(4), IMAGE),
    "BatchNorm3d": Case(lambda: nn.BatchNorm3d(4), VOLUME),
    "BatchNorm, large eps": Case(lambda: nn.BatchNorm2d(4, eps=0.5), IMAGE),
    "BatchNorm without scale": Case(lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
    "BatchNorm without statistics": Case(
        lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGE
    ),
    "BatchNorm without both": Case(
        lambda: nn.BatchNorm1d(4, affine=False, track_running_stats=False), SIGNAL
    ),
    "BatchNorm, data": Case(lambda: nn.BatchNorm2d(4, eps=0.1), IMAGE, options=DATA),
    "BatchNorm of vectors, data": Case(lambda: nn.BatchNorm1d(4), options=DATA),
    "BatchNorm3d without scale, data": Case(
        lambda: nn.BatchNorm3d(4, affine=False), VOLUME, options=DATA
    ),
    "SyncBatchNorm": Case(
        lambda: nn.SyncBatchNorm(4), IMAGE, lambda: nn.BatchNorm2d(4)
    ),
    "F.batch_norm": as_batch_norm(lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b)),
    "F.batch_norm by keyword": as_batch_norm(
        lambda x, w, b, m, v: F.batch_norm(
            x, running_mean=m, running_var=v, weight=w, bias=b, training=False, eps=1e-5
        )
    ),
    "torch.batch_norm": as_batch_norm(
        lambda x, w, b, m, v: torch.batch_norm(x, w, b, m, v, False, 0.1, 1e-5, True)
    ),
    "LayerNorm": Case(lambda: nn.LayerNorm(4)),
    "LayerNorm of two dimensions": Case(lambda: nn.LayerNorm((3, 4)), IMAGE),
    "LayerNorm without scale": Case(
        lambda: nn.LayerNorm(4, elementwise_affine=False), IMAGE,
        gate(lambda z: 1 / (z.var(-1, correction=0, keepdim=True) + 1e-5)),
    ),
    "F.layer_norm": Case(
        lambda: Own(lambda x, w, b: F.layer_norm(x, (4,), w, b, eps=0.3), 4), IMAGE
    ),
    "torch.layer_norm": Case(
        lambda: Own(lambda x, w, b: torch.layer_norm(x, (4,), w, b, 0.3), 4), IMAGE,
        lambda: Own(lambda x, w, b: F.layer_norm(x, (4,), w, b, 0.3), 4),
    ),
    "LayerNorm of channels": Case(
        lambda: Own(
            lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), (4,), w, b).permute(0, 3, 1, 2), 4
        ),
        IMAGE,
    ),
    "GroupNorm": Case(lambda: nn.GroupNorm(2, 4), IMAGE),
    "GroupNorm, one group": Case(lambda: nn.GroupNorm(1, 4), SIGNAL),
    "GroupNorm of vectors": Case(lambda: nn.GroupNorm(2, 4)),
    "GroupNorm of volumes": Case(lambda: nn.GroupNorm(4, 4, eps=0.1), VOLUME),
    "GroupNorm without scale": Case(
        lambda: nn.GroupNorm(2, 4, affine=False), IMAGE,
        gate(
            lambda z: (1 / (z.view(-1, 2, 24).var(2, correction=0) + 1e-5))
            .repeat_interleave(2, 1)[..., None, None]
        ),
    ),
    **{
        name: Case(
            lambda function=function: Own(function, 4), IMAGE, lambda: scaled(nn.GroupNorm(2, 4))
        )
        for name, function in {
            "F.group_norm": lambda x, w, b: F.group_norm(x, 2, w, b),
            "torch.group_norm": lambda x, w, b: torch.group_norm(x, 2, weight=w, bias=b),
        }.items()
    },
    "InstanceNorm1d": Case(lambda: nn.InstanceNorm1d(4, affine=True), SIGNAL),
    "InstanceNorm2d": Case(lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "InstanceNorm3d": Case(lambda: nn.InstanceNorm3d(4, affine=True), VOLUME),
    "InstanceNorm without scale": Case(lambda: nn.InstanceNorm2d(4), IMAGE),
    "InstanceNorm with statistics": Case(
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE
    ),
    "InstanceNorm with statistics, no scale": Case(
        lambda: nn.InstanceNorm1d(4, track_running_stats=True), SIGNAL
    ),
    **{
        name: Case(
            lambda function=function: Own(function, 4), IMAGE,
            lambda: scaled(nn.InstanceNorm2d(4, affine=True)),
        )
        for name, function in {
            "F.instance_norm": lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
            "torch.instance_norm": lambda x, w, b: torch.instance_norm(
                x, w, b, None, None, True, 0.1, 1e-5, True
            ),
        }.items()
    },
    "torch.instance_norm with statistics": as_batch_norm(
        lambda x, w, b, m, v: torch.instance_norm(x, w, b, m, v, False, 0.1, 1e-5, True)
    ),
    **{
        name: Case(
            lambda function=function: Own(function, 4, shift=False), IMAGE,
            lambda eps=eps: Own(lambda x, w, b: x * rms(x, -1, eps) * w, 4, shift=False),
        )
        for name, function, eps in [
            ("F.rms_norm", lambda x, w, b: F.rms_norm(x, (4,), w, 0.3), 0.3),
            ("F.rms_norm, eps of the dtype", lambda x, w, b: F.rms_norm(x, (4,), w), EPS64),
            ("torch.rms_norm", lambda x, w, b: torch.rms_norm(x, (4,), w, eps=0.3), 0.3),
        ]
    },
    "RMSNorm of two dimensions without scale": Case(
        lambda: nn.RMSNorm((3, 4), eps=0.2, elementwise_affine=False), IMAGE,
        gate(lambda z: rms(z, (2, 3), 0.2) ** 2),
    ),
    "LocalResponseNorm": Case(
        lambda: nn.LocalResponseNorm(3, alpha=2.0, beta=0.6, k=0.7), IMAGE,
        gate(lambda z: (F.local_response_norm(z, 3, 2.0, 0.6, 0.7) / z) ** 2),
    ),
    "LocalResponseNorm, even, 1d": of(
        lambda x: F.local_response_norm(x, 2, alpha=3.0), SIGNAL,
        gate(lambda z: (F.local_response_norm(z, 2, 3.0) / z) ** 2),
    ),
    "LocalResponseNorm, 3d": of(
        lambda x: F.local_response_norm(x, size=5, k=2.0), VOLUME,
        gate(lambda z: (F.local_response_norm(z, 5, k=2.0) / z) ** 2),
    ),
    "F.normalize": by_hand(F.normalize, lambda z: 1 / z.norm(dim=1, keepdim=True)),
    "F.normalize, p and dim": by_hand(
        lambda x: F.normalize(x, p=1.0, dim=-1), lambda z: 1 / z.abs().sum(-1, keepdim=True)
    ),
    "F.normalize, eps": by_hand(
        lambda x: F.normalize(x, 2.0, 1, eps=0.8),
        lambda z: 1 / z.norm(dim=1, keepdim=True).clamp(min=0.8),
    ),
    "GRN": Case(lambda: Own(grn, 4), IMAGE, lambda: Own(grn_in_reference, 4)),
    "mean and pow": by_hand(
        two_lines, lambda z: (z.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).rsqrt()
    ),
    "in place": by_hand(in_place, lambda z: 1 / z.std(1, keepdim=True)),
    "a mean that was reshaped": by_hand(
        reshaped_mean, lambda z: (z.var((2, 3), keepdim=True) + 1e-5).rsqrt()
    ),
    "var_mean": by_hand(var_mean, lambda z: (z.var(1, keepdim=True) + 1e-5).rsqrt()),
    "std_mean": by_hand(std_mean, lambda z: 1 / (z.std((2, 3), keepdim=True) + 1e-5)),
    "x / norm": by_hand(
        lambda x: x / x.norm(dim=1, keepdim=True), lambda z: 1 / z.norm(dim=1, keepdim=True)
    ),
    "x.div(torch.norm)": by_hand(
        lambda x: x.div(torch.norm(x, 2, 1, True)), lambda z: 1 / z.norm(dim=1, keepdim=True)
    ),
    "torch.linalg.norm": by_hand(
        lambda x: torch.true_divide(x, torch.linalg.norm(x, dim=1, keepdim=True)),
        lambda z: 1 / z.norm(dim=1, keepdim=True),
    ),
    "torch.linalg.vector_norm": by_hand(
        lambda x: x * (1 / torch.linalg.vector_norm(x, dim=1, keepdim=True)),
        lambda z: 1 / z.norm(dim=1, keepdim=True),
    ),
    "a norm alone in a power": by_hand(
        lambda x: x * (x.square().mean(1, keepdim=True) + 1e-5) ** -0.5, lambda z: rms(z, 1, 1e-5)
    ),
    "reciprocal of sqrt": by_hand(
        lambda x: x * x.pow(2).mean(1, keepdim=True).sqrt().reciprocal(), lambda z: rms(z, 1)
    ),
    "exp and log": by_hand(
        lambda x: x * torch.exp(-0.5 * torch.log((x * 1.0).pow(2).mean(1, keepdim=True))),
        lambda z: rms(z, 1),
    ),
    "exp2, expm1, log1p": by_hand(
        lambda x: x * x.std(1, keepdim=True).log1p().expm1().exp2(),
        lambda z: 2 ** z.std(1, keepdim=True),
    ),
    "cos of a norm": by_hand(
        lambda x: x * torch.cos(x.norm(dim=1, keepdim=True)),
        lambda z: torch.cos(z.norm(dim=1, keepdim=True)),
    ),
    "a power of a gate": by_hand(
        lambda x: x * 2.0 ** x.std(1, keepdim=True), lambda z: 2 ** z.std(1, keepdim=True)
    ),
    "softmax over channels": by_hand(
        lambda x: x * F.softmax(x, dim=1), lambda z: F.softmax(z, dim=1)
    ),
    "softmin": by_hand(lambda x: F.softmin(x, dim=1) * x, lambda z: F.softmin(z, dim=1)),
    "nn.Softmin": by_hand(lambda x: nn.Softmin(1)(x) * x, lambda z: F.softmin(z, dim=1)),
    **{
        key: case
        for name in ("sqrt", "rsqrt", "square", "exp", "reciprocal", "log", "exp2", "expm1",
                     "log1p", "cos")
        for key, case in everywhere(name).items()
    },
    **everywhere("pow", 1.5),
    **everywhere("softmax", dim=1),
    **everywhere("log_softmax", dim=1),
    **everywhere("logsumexp", dim=1, keepdim=True),
    **everywhere("var", dim=1, keepdim=True),
    **everywhere("std", dim=1, keepdim=True),
    **everywhere("norm", dim=1, keepdim=True),
    "centring alone": of(flat_mean, IMAGE, gate(torch.ones_like)),
}  # fmt: skip


def scaled(norm: nn.Module) -> nn.Module:
    """A norm of torch with the scale and shift of `Own`, and its state in the same order."""
    own = Own(lambda x, w, b: x, 4)
    with torch.no_grad():
        norm.weight.copy_(own.scale)
        norm.bias.copy_(own.shift)
    return norm


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    check(CASES[name])


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_instance_norm_with_the_data_s_statistics(criterion):
    """They are those of every sample, as without running statistics."""
    with_statistics, without = (
        network(
            lambda track=track: nn.InstanceNorm2d(4, affine=True, track_running_stats=track),
            IMAGE,
            3,
        )
        for track in (True, False)
    )
    without.load_state_dict(with_statistics.state_dict(), strict=False)
    x = random_batch((2, 3, 4), 3).double()
    options = {"criterion": criterion, "masks": random_masks(without, 0.6)}
    scores = pxfast.score(with_statistics, x, batchnorm="data", **options)
    expected = pxfast.score(without, x, **options)
    for name in expected:
        close(scores[name], expected[name], SMALL_NET[torch.float64], name)
