"""PX as a zero-cost proxy: rank untrained architectures of NAS-Bench-201's search space.

    python examples/in_zero_cost.py

Takes a few seconds; prints architectures, best first.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from pxfast.integrations.zero_cost import proxy

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class Zero(nn.Module):
    """The operation "none": nothing passes."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the same shape."""
        return x * 0.0


def operation(name: str, channels: int) -> nn.Module:
    """One of the five operations that an edge can be; BatchNorm there keeps no statistics."""
    if name in ("nor_conv_1x1", "nor_conv_3x3"):
        size = int(name[-1])
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, size, padding=size // 2, bias=False),
            nn.BatchNorm2d(channels, affine=False, track_running_stats=False),
        )
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Identity() if name == "skip_connect" else Zero()


class Cell(nn.Module):
    """Four nodes; each is the sum of one operation on every node before it.

    Args:
        architecture: Such as ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|…~0|…~1|…~2|``.
        channels: Channels of every node.
    """

    def __init__(self, architecture: str, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList()
        for node in architecture.split("+"):
            names = [edge.partition("~")[0] for edge in node.strip("|").split("|")]
            self.edges.append(nn.ModuleList(operation(name, channels) for name in names))

    def forward(self, x: Tensor) -> Tensor:
        """The last node."""
        nodes = [x]
        for edges in self.edges:
            nodes.append(sum(edge(node) for edge, node in zip(edges, nodes, strict=True)))
        return nodes[-1]


class Reduction(nn.Module):
    """Half the size, twice the channels: a residual block between stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, 2C, H/2, W/2]."""
        return self.shortcut(x) + self.body(x)


def network(architecture: str, channels: int = 8, cells: int = 1, classes: int = 10) -> nn.Module:
    """The network around the cells: three stages of them (NAS-Bench-201: 16 channels, 5 cells)."""
    stages: list[nn.Module] = []
    for stage in range(3):
        if stage:
            stages.append(Reduction(channels * 2 ** (stage - 1)))
        stages.extend(Cell(architecture, channels * 2**stage) for _ in range(cells))
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), *stages,
        nn.BatchNorm2d(4 * channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4 * channels, classes),
    )  # fmt: skip


def drawn(lot: random.Random) -> str:
    """An architecture, drawn from all 15,625."""
    nodes = [[f"{lot.choice(OPERATIONS)}~{edge}" for edge in range(node)] for node in (1, 2, 3)]
    return "+".join(f"|{'|'.join(edges)}|" for edges in nodes)


def main() -> None:
    """Ranks a few architectures by the bound of their NTK's trace."""
    torch.manual_seed(0)
    images, lot = torch.randn(16, 3, 16, 16), random.Random(0)
    architectures = [drawn(lot) for _ in range(8)]
    values = {name: proxy(network(name), images, "px_trace") for name in architectures}
    print("log2 of the bound")
    for name in sorted(values, key=values.__getitem__, reverse=True):
        print(f"{values[name]:10.2f}  {name}")


if __name__ == "__main__":
    main()
