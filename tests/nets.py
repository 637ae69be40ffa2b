"""Small seeded networks that several tests need.

Every constructor takes `seed` and returns a freshly initialised network in eval mode and float32.
Biases, normalisation scales and running statistics are random, never the identity. No name
contains "bn" or "fc", which `pxfast.reference.official` treats specially. `NETS` lists them all
with the shape of one sample, so that a test can be parametrised over it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from pxfast.reference.units import Concat, Sum

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


class Net(NamedTuple):
    """A constructor and the shape of one sample of its input."""

    build: Callable[..., nn.Module]
    shape: tuple[int, ...]


def seeded(model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build `model` from `seed`, the global generator untouched, and randomise its norms."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = model().eval()
        for module in network.modules():
            if isinstance(module, nn.Linear | _ConvNd) and module.bias is not None:
                module.bias.uniform_(-0.1, 0.3)  # mostly positive: few dead units
            if isinstance(module, NORMS) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.weight.mul_(torch.randint(0, 2, module.weight.shape) * 2 - 1)
                module.bias.uniform_(-0.2, 1.0)
            if isinstance(module, _NormBase) and module.track_running_stats:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return network


def mlp(seed: int = 0, sizes: tuple[int, ...] = (4, 5, 4, 3), bias: bool = True) -> nn.Module:
    """Linear layers with ReLU between them."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return seeded(build, seed)


def conv(seed: int = 0, channels: int = 2, bias: bool = True) -> nn.Module:
    """Two convolutions (the second strided, without padding), a linear layer; for [N, 1, 5, 5]."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=bias),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, bias=bias),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * 4, 3, bias=bias),
        ),
        seed,
    )


def residual(seed: int = 0, channels: int = 2, bias: bool = True) -> nn.Module:
    """Residual blocks with identity and strided 1x1 shortcuts, mean pooling; for [N, 1, 4, 4]."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, channels, 1, bias=bias),
            nn.ReLU(),
            Sum(
                nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=bias), nn.ReLU()),
                nn.Identity(),
            ),
            Sum(
                nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=bias),
                nn.Conv2d(channels, channels, 1, stride=2, bias=bias),
            ),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 3, bias=bias),
        ),
        seed,
    )


def concat(seed: int = 0, bias: bool = True) -> nn.Module:
    """Two branches of different widths and the input itself, concatenated; for [N, 4]."""
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 3, bias=bias),
            nn.ReLU(),
            Concat(
                nn.Sequential(nn.Linear(3, 4, bias=bias), nn.ReLU(), nn.Linear(4, 2, bias=bias)),
                nn.Linear(3, 1, bias=bias),
                nn.Identity(),
            ),
            nn.ReLU(),
            nn.Linear(6, 3, bias=bias),
        ),
        seed,
    )


def batchnorm(seed: int = 0, channels: int = 2, track_running_stats: bool = True) -> nn.Module:
    """BatchNorm after convolutions and a linear layer, average pooling; for [N, 1, 4, 4]."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, channels, 2, bias=False),
            nn.BatchNorm2d(channels, track_running_stats=track_running_stats),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 2, bias=True),
            nn.BatchNorm2d(channels, track_running_stats=track_running_stats),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(channels, 4),
            nn.BatchNorm1d(4, track_running_stats=track_running_stats),
            nn.ReLU(),
            nn.Linear(4, 3),
        ),
        seed,
    )


def maxpool(seed: int = 0, channels: int = 3, bias: bool = True) -> nn.Module:
    """Overlapping, padded and plain max-pooling around a convolution; for [N, 1, 5, 5]."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, channels, 2, bias=bias),
            nn.MaxPool2d(2, stride=1, padding=1),
            nn.Conv2d(channels, channels, 1, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(channels * 4, 3, bias=bias),
        ),
        seed,
    )


def leaky(seed: int = 0, bias: bool = True) -> nn.Module:
    """Leaky ReLUs with a fixed and with a learned slope; for [N, 4]."""
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 5, bias=bias),
            nn.LeakyReLU(0.3),
            nn.Linear(5, 4, bias=bias),
            nn.PReLU(4, init=-0.4),
            nn.Linear(4, 3, bias=bias),
        ),
        seed,
    )


def depthwise(seed: int = 0, bias: bool = True) -> nn.Module:
    """Grouped, depthwise and dilated convolutions; for [N, 2, 4, 4]."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 1, groups=2, bias=bias),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=bias),
            nn.ReLU(),
            nn.Conv2d(4, 2, 2, dilation=2, bias=bias),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 3, bias=bias),
        ),
        seed,
    )


class Functional(nn.Module):
    """Operations written as functions, methods and operators: residual, concatenation, buffer."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(8 * channels, 3)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.leaky_relu(self.body(x), 0.1) * self.scale + x
        x = torch.cat([nn.functional.max_pool2d(x, 2), nn.functional.avg_pool2d(x, 2)], dim=1)
        return self.head(torch.flatten(x.relu(), 1)) / 2


def functional(seed: int = 0, channels: int = 2) -> nn.Module:
    """`Functional`; for [N, 1, 4, 4]."""
    return seeded(lambda: Functional(channels), seed)


NETS = {
    "mlp": Net(mlp, (4,)),
    "conv": Net(conv, (1, 5, 5)),
    "residual": Net(residual, (1, 4, 4)),
    "concat": Net(concat, (4,)),
    "batchnorm": Net(batchnorm, (1, 4, 4)),
    "maxpool": Net(maxpool, (1, 5, 5)),
    "leaky": Net(leaky, (4,)),
    "depthwise": Net(depthwise, (2, 4, 4)),
    "functional": Net(functional, (1, 4, 4)),
}


def random_batch(shape: tuple[int, ...], samples: int = 3, seed: int = 0) -> Tensor:
    """Normal inputs of shape [samples, *shape] from their own generator."""
    return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed))


def prunable_names(model: nn.Module) -> list[str]:
    """Names of the weights of linear and convolution layers, in the model's order."""
    return [
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | _ConvNd)
    ]


def random_masks(model: nn.Module, density: float, seed: int = 0) -> dict[str, Tensor]:
    """Random bool masks for every prunable weight; each output unit keeps one weight at least."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name in prunable_names(model):
        shape = model.get_parameter(name).shape
        noise = torch.rand(shape, generator=generator)
        smallest = noise.flatten(1).amin(1).view(-1, *[1] * (noise.dim() - 1))
        masks[name] = (noise < density) | (noise == smallest)
    return masks
