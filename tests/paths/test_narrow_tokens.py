"""Path sums that are the same for every token are computed once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import random_batch, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast import ops
from pxfast.paths.pathsum import PathSum
from pxfast.paths.rules import linear


class Patches(nn.Module):
    """Patches of an image, two blocks, and the mean over tokens; or a class token."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2, 4, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 4)) if class_token else None
        self.positions = nn.Parameter(torch.randn(1, 9 + class_token, 4))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(4, 12) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(4, 6) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.positions
        for block in range(2):
            packed = self.qkv[block](self.norms[2 * block](x)).unflatten(-1, (3, 2, 2))
            q, k, v = packed.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v)
            x = x + self.proj[block](attended.transpose(1, 2).flatten(2))
            y = self.norms[2 * block + 1](x)
            x = x + self.down[block](F.gelu(self.up[block](y)))
        return self.head(x.mean(1) if self.token is None else x[:, 0])


def patches(class_token: bool) -> nn.Module:
    return seeded(lambda: Patches(class_token), 2).double()


def test_patches_are_one_token_in_g(monkeypatch):
    """Without a class token, no layer of g sees more than one."""
    shapes = []
    squared = ops.squared_linear

    def spy(x: Tensor, *rest: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return squared(x, *rest)

    monkeypatch.setattr(ops, "squared_linear", spy)
    pxfast.score(patches(False), random_batch((2, 6, 6)).double())
    assert len(shapes) == 9
    assert all(shape[:-1].count(1) == len(shape) - 1 for shape in shapes)


@pytest.mark.parametrize("class_token", [False, True])
def test_h_needs_no_products_where_nothing_is_masked(class_token, monkeypatch):
    """Every linear layer is a sum over channels: one number for each token."""
    sums = []
    summed = linear.summed

    def spy(path: PathSum, dim: int, size: int) -> PathSum:
        sums.append(size)
        return summed(path, dim, size)

    monkeypatch.setattr(linear, "summed", spy)
    monkeypatch.setattr(pxfast.paths.passes.Passes, "data_cancels", lambda self, batch: False)
    pxfast.score(patches(class_token), random_batch((2, 6, 6)).double())
    assert sums[-9:] == [4, 4, 4, 6, 4, 4, 4, 6, 4]


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("class_token", [False, True])
def test_scores_do_not_change(class_token, criterion, monkeypatch):
    model, x = patches(class_token), random_batch((2, 6, 6)).double()
    scores = pxfast.score(model, x, criterion=criterion)
    monkeypatch.setattr(linear.Convolution, "is_even", lambda self: False)
    wide = pxfast.score(model, x, criterion=criterion)
    for name, score in scores.items():
        close(score, wide[name], SMALL_NET[torch.float64], name)
    close(scores["embed.weight"].sum(), torch.ones(()), SMALL_NET[torch.float64], "embed")
