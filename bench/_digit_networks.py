"""The networks of the quality benchmark, for handwritten digits of 8 by 8 pixels.

They are written the way the community writes them; nothing in them knows about pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pxfast
from pxfast.training import Optimiser, sgd


class TinyViT(nn.Module):
    """A vision transformer: patches of 2 by 2, a class token, blocks with LayerNorm in front."""

    def __init__(
        self, dim: int = 32, depth: int = 2, heads: int = 4, patch: int = 2, size: int = 8
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[N, 1, size, size]`` to logits ``[N, 10]``."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Block(nn.Module):
    """Attention and a two-layer perceptron with GELU, each on a residual branch."""

    def __init__(self, dim: int, heads: int, ratio: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens ``[N, T, dim]`` to tokens of the same shape."""
        samples, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(samples, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(mixed.reshape(samples, tokens, dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def resnet8() -> nn.Module:
    """`pxfast.models.resnet20` with one block instead of three in each stage."""
    return pxfast.models.ResNet(blocks=1, num_classes=10, in_channels=1, batchnorm=True)


def adamw(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Weight decay 0.01."""
    return torch.optim.AdamW(parameters, lr, weight_decay=0.01)


@dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        build: Makes it, initialised by torch's global generator.
        optimiser: Of its parameters, with a learning rate.
        init: Learning rate and epochs of a training from initialisation.
        pretrained: The same of the training that follows when a trained network was pruned.
        batchnorm: Whether it has BatchNorm.
    """

    build: Callable[[], nn.Module]
    optimiser: Optimiser
    init: tuple[float, int]
    pretrained: tuple[float, int]
    batchnorm: bool


NETWORKS = {
    "resnet8": Network(resnet8, sgd, init=(0.1, 6), pretrained=(0.05, 3), batchnorm=True),
    "vit": Network(TinyViT, adamw, init=(5e-3, 10), pretrained=(2e-3, 3), batchnorm=False),
}
BATCH_SIZE = 64
