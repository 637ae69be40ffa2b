"""Path sums that are the same for every token are computed once."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from nets import random_batch, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast import ops
from pxfast.paths.pathsum import PathSum, Runs, total
from pxfast.paths.rules import geometry, linear, shape


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


@pytest.mark.parametrize("class_token", [False, True])
def test_patches_are_one_token_in_g(class_token, monkeypatch):
    """No layer of g sees more than one, and one more for the class token."""
    shapes = []
    squared = ops.squared_linear

    def spy(x: Tensor, *rest: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return squared(x, *rest)

    monkeypatch.setattr(ops, "squared_linear", spy)
    pxfast.score(patches(class_token), random_batch((2, 6, 6)).double())
    assert len(shapes) == 9
    assert max(math.prod(shape[:-1]) for shape in shapes) == 1 + class_token


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
    monkeypatch.setattr(geometry.Convolution, "is_even", lambda self: False)
    monkeypatch.setattr(shape, "_in_runs", lambda *pieces: None)
    wide = pxfast.score(model, x, criterion=criterion)
    for name, score in scores.items():
        close(score, wide[name], SMALL_NET[torch.float64], name)
    close(scores["embed.weight"].sum(), torch.ones(()), SMALL_NET[torch.float64], "embed")


# ---- runs


def runs() -> tuple[Runs, PathSum]:
    """A class token and 6 patches, in runs and written out."""
    once = torch.rand(1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = torch.cat([once[:, :1], once[:, 1:].expand(-1, 6, -1)], 1)
    return Runs(PathSum(once, 5), 1, (1, 6)), PathSum(whole, 5)


def same(first: PathSum, second: PathSum) -> bool:
    assert first.shape == second.shape == first.mantissa.shape
    return torch.equal(first.mantissa * 2.0**first.exponent, second.mantissa * 2.0**second.exponent)


def test_runs_are_what_they_stand_for():
    short, whole = runs()
    assert same(short, whole)
    for factor in (3.0, torch.rand(3), torch.rand(1, 3), torch.rand(7, 1), torch.rand(1, 7, 3)):
        assert same(short.times(factor), whole.times(factor))
    assert isinstance(short.times(torch.rand(3)), Runs)
    assert not isinstance(short.times(torch.rand(7, 1)), Runs)
    assert same(short.times(2.0**40).normalised(), whole.times(2.0**40).normalised())
    assert same(short.map(lambda m: m.sum(1)), whole.map(lambda m: m.sum(1)))


def test_sums_of_runs():
    short, whole = runs()
    narrow, wide = PathSum(torch.rand(1, 1, 3).double(), 2), PathSum(torch.rand(1, 7, 3).double())
    others = Runs(PathSum(torch.rand(1, 2, 3).double()), 1, (6, 1))
    for term, stays in ((short, True), (narrow, True), (wide, False), (others, True)):
        for terms in ([short, term], [term, short]):
            expected = [whole if each is short else each for each in terms]
            assert same(total(terms), total(expected))
            assert isinstance(total(terms), Runs) == stays


def test_the_backward_of_runs_sums_over_each():
    short, _ = runs()
    leaf = short.once.mantissa.requires_grad_()
    weight = torch.rand(1, 7, 3, dtype=torch.float64)
    (short.mantissa * weight).sum().backward()
    expected = torch.cat([weight[:, :1], weight[:, 1:].sum(1, keepdim=True)], 1)
    torch.testing.assert_close(leaf.grad, expected)
