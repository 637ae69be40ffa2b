"""Linear layers and convolutions of every geometry, as modules and as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from middles import Case, check, network
from nets import random_batch, random_masks
from torch import Tensor, nn

import pxfast
from pxfast.reference import px

SIGNAL, IMAGE, VOLUME = (4, 7), (4, 5, 6), (4, 3, 4, 3)


class Functional(nn.Module):
    """A function of the input and of a weight (and bias) of its own."""

    def __init__(self, function: Callable[..., Any], *weight: int, bias: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*weight))
        self.bias = nn.Parameter(torch.randn(bias)) if bias else None
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def functional(function: Callable[..., Any], shape: Any, *weight: int, **rest: Any) -> Case:
    named = {name: rest.pop(name) for name in ("expected",) if name in rest}
    return Case(lambda: Functional(function, *weight, **rest), shape, **named)


class Unbatched(nn.Module):
    """A layer that is given one sample at a time, without the dimension of samples."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(x[i]) for i in range(x.shape[0])])


class Batched(Unbatched):
    """The same layer, given the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def same(build: Callable[[], nn.Module], shape: Any) -> Case:
    """A layer whose unbatched use must score as its batched use does."""
    return Case(lambda: Unbatched(build()), shape, lambda: Batched(build()))


def permuted_linear(x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight, bias)


MODES = ("zeros", "reflect", "replicate", "circular")
CASES = {
    "linear": Case(lambda: nn.Linear(4, 3)),
    "linear of the last dimension": Case(lambda: nn.Linear(6, 3), IMAGE),
    "linear without bias": Case(lambda: nn.Linear(4, 3, bias=False)),
    "F.linear": functional(F.linear, (4,), 3, 4),
    "linear of channels-last images": functional(permuted_linear, IMAGE, 3, 4, bias=3),
    "conv1d": Case(lambda: nn.Conv1d(4, 3, 3), SIGNAL),
    "conv2d": Case(lambda: nn.Conv2d(4, 3, 3), IMAGE),
    "conv3d": Case(lambda: nn.Conv3d(4, 3, 2), VOLUME),
    "strided, dilated, padded 1d": Case(
        lambda: nn.Conv1d(4, 2, 3, stride=2, padding=3, dilation=2), SIGNAL
    ),
    "strided, dilated, padded 2d": Case(
        lambda: nn.Conv2d(4, 2, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3)), IMAGE
    ),
    "strided, dilated, padded 3d": Case(
        lambda: nn.Conv3d(4, 2, (2, 3, 1), stride=(1, 2, 2), padding=(1, 2, 0), dilation=(2, 1, 1)),
        VOLUME,
    ),
    "depthwise": Case(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE),
    "depthwise with multiplier": Case(lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), IMAGE),
    "grouped 1d": Case(lambda: nn.Conv1d(4, 6, 3, groups=2), SIGNAL),
    "grouped 2d": Case(lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), IMAGE),
    "grouped 3d": Case(lambda: nn.Conv3d(4, 2, 2, groups=2), VOLUME),
    **{
        f"{mode} padding {layer.__name__}": Case(
            lambda layer=layer, mode=mode: layer(4, 3, 3, padding=1, padding_mode=mode), shape
        )
        for mode in MODES
        for layer, shape in ((nn.Conv1d, SIGNAL), (nn.Conv2d, IMAGE), (nn.Conv3d, VOLUME))
    },
    "circular, uneven": Case(
        lambda: nn.Conv2d(4, 3, (3, 2), padding=(1, 2), padding_mode="circular"), IMAGE
    ),
    "'same'": Case(lambda: nn.Conv2d(4, 3, 3, padding="same"), IMAGE),
    "'same', even kernels": Case(lambda: nn.Conv2d(4, 3, (2, 4), padding="same"), IMAGE),
    "'same', dilated 1d": Case(lambda: nn.Conv1d(4, 3, 2, padding="same", dilation=3), SIGNAL),
    "'same' 3d": Case(lambda: nn.Conv3d(4, 3, (2, 3, 2), padding="same"), VOLUME),
    "'same', reflected": Case(
        lambda: nn.Conv2d(4, 3, 3, padding="same", padding_mode="reflect"), IMAGE
    ),
    "'same', depthwise": Case(lambda: nn.Conv2d(4, 4, 2, padding="same", groups=4), IMAGE),
    "'valid'": Case(lambda: nn.Conv2d(4, 3, 3, padding="valid"), IMAGE),
    "transposed 1d": Case(lambda: nn.ConvTranspose1d(4, 3, 3), SIGNAL),
    "transposed 2d": Case(lambda: nn.ConvTranspose2d(4, 3, 3), IMAGE),
    "transposed 3d": Case(lambda: nn.ConvTranspose3d(4, 3, 2), VOLUME),
    "transposed 1d, output padding": Case(
        lambda: nn.ConvTranspose1d(4, 3, 3, stride=3, padding=1, output_padding=2), SIGNAL
    ),
    "transposed 2d, output padding, dilated, grouped": Case(
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(2, 1),
            groups=2,
        ),
        IMAGE,
    ),
    "transposed 3d, output padding, grouped": Case(
        lambda: nn.ConvTranspose3d(4, 2, 2, stride=2, output_padding=(1, 0, 1), groups=2), VOLUME
    ),
    "transposed depthwise": Case(lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4), IMAGE),
    "F.conv1d": functional(lambda x, w, b: F.conv1d(x, w, b, 2, 1, 1, 2), SIGNAL, 6, 2, 3, bias=6),
    "F.conv2d": functional(
        lambda x, w, b: F.conv2d(x, w, bias=b, stride=2, padding=(1, 0), dilation=2),
        IMAGE, 3, 4, 2, 2, bias=3,
    ),
    "F.conv3d": functional(
        lambda x, w, b: F.conv3d(x, w, b, padding="same"), VOLUME, 3, 4, 2, 2, 2
    ),
    "torch.conv1d": functional(lambda x, w, b: torch.conv1d(x, w, b), SIGNAL, 3, 4, 3),
    "torch.conv2d": functional(
        lambda x, w, b: torch.conv2d(input=x, weight=w), IMAGE, 3, 4, 3, 3,
        expected=lambda: Functional(lambda x, w, b: F.conv2d(x, w), 3, 4, 3, 3),
    ),
    "torch.conv3d": functional(
        lambda x, w, b: torch.conv3d(x, w, b, (1, 2, 1)), VOLUME, 3, 4, 2, 2, 2
    ),
    "F.conv_transpose1d": functional(
        lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1), SIGNAL, 4, 3, 3, bias=3
    ),
    "F.conv_transpose2d": functional(
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, groups=2), IMAGE, 4, 3, 2, 2, bias=6
    ),
    "F.conv_transpose3d": functional(
        lambda x, w, b: F.conv_transpose3d(x, w, dilation=2), VOLUME, 4, 2, 2, 2, 2
    ),
    "unbatched conv1d": same(lambda: nn.Conv1d(4, 3, 3, padding=1, groups=1), SIGNAL),
    "unbatched conv2d": same(lambda: nn.Conv2d(4, 6, (3, 2), stride=2, groups=2), IMAGE),
    "unbatched conv2d, 'same'": same(lambda: nn.Conv2d(4, 3, (2, 3), padding="same"), IMAGE),
    "unbatched conv2d, circular": same(
        lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE
    ),
    "unbatched conv3d": same(lambda: nn.Conv3d(4, 3, 2), VOLUME),
    "unbatched transposed conv2d": same(lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), IMAGE),
    "unbatched linear": same(lambda: nn.Linear(4, 3), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    check(CASES[name])


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("density", [0.0, 0.03])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(8, 8, 3, padding="same"),
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        lambda: nn.ConvTranspose2d(8, 8, 3, padding=1),
        lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
    ],
)
def test_almost_and_quite_empty_convolutions(layer, density, criterion):
    """A residual branch whose convolution keeps a few weights or none; its bias shifts gates."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer()

        def forward(self, x):
            return torch.relu(self.layer(x) + x)

    model = network(Branch, (8, 4, 4), 3)
    x, masks = random_batch((2, 4, 4), 3).double(), random_masks(model, 0.6)
    inner = masks["operation.layer.weight"]
    inner &= torch.rand(inner.shape, generator=torch.Generator().manual_seed(0)) < density
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    expected = px.score(model, x, criterion=criterion, masks=masks)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-12, atol=1e-15)
