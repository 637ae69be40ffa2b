"""In g a map is computed once for all rows and columns that see no padding."""

from __future__ import annotations

import itertools

import nets
import pytest
import torch
import torch.nn.functional as F
from scored import assert_same
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.paths.pathsum import PathSum, Runs, total
from pxfast.paths.rules import edges
from pxfast.paths.rules.edges import Window, slid
from pxfast.paths.rules.squared import SquaredConvolution
from pxfast.reference import px

F64 = torch.float64


def in_runs(rows: list[int], columns: list[int]) -> tuple[PathSum, Tensor]:
    """A random map [1, 2, H, W] of which neighbours are equal, and the leaf behind it."""
    leaf = torch.rand(1, 2, len(rows), len(columns), dtype=F64, requires_grad=True)
    return Runs(Runs(PathSum(leaf, 3), 3, columns), 2, rows), leaf


def edged(before: int, middle: int, after: int) -> list[int]:
    return [1] * before + [middle] + [1] * after


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("kernel, dilation", [(1, 1), (2, 1), (3, 1), (3, 2), (7, 1)])
def test_a_slid_window_gives_what_it_gives_on_the_whole_map(kernel, dilation, padding, stride):
    torch.manual_seed(0)
    weight = torch.rand(4, 2, kernel, kernel, dtype=F64, requires_grad=True)
    windows = [Window(stride, padding, dilation * (kernel - 1) + 1)] * 2

    def convolve(x: Tensor) -> Tensor:
        if len(x) == 1:  # ours: 30 and more rows and columns on the whole map
            assert max(x.shape[2:]) <= 26
        return F.conv2d(x, weight, None, stride, padding, dilation)

    cases = itertools.product((0, 1, 3), (30, 31), (0, 2))
    for before, middle, after in cases:
        path, leaf = in_runs(edged(before, middle, after), edged(after, middle + 2, before))
        result = slid(path, path.shape, windows, convolve)
        expected = convolve(path.mantissa.expand(2, -1, -1, -1))[:1]
        written = result.mantissa.expand(expected.shape)  # of one entry where all are alike
        assert result.exponent == 3
        close(written, expected, SMALL_NET[F64])
        dy = torch.rand_like(expected)
        for got, wanted in zip(
            torch.autograd.grad((written * dy).sum(), (weight, leaf)),
            torch.autograd.grad((expected * dy).sum(), (weight, leaf)),
            strict=True,
        ):
            close(got, wanted, SMALL_NET[F64])


def test_constant_and_whole_dimensions():
    windows = [Window(1, 0, 3), Window(1, 1, 3)]
    weight = torch.rand(4, 2, 3, 3, dtype=F64)

    def convolve(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=(0, 1))

    constant = PathSum(torch.rand(1, 2, 1, 1, dtype=F64))
    result = slid(constant, (1, 2, 40, 50), windows, convolve)
    assert result.shape == (1, 4, 1, 50)  # rows see no padding: they stay alike
    expected = convolve(constant.mantissa.expand(1, 2, 40, 50))
    close(result.mantissa.expand(expected.shape), expected, SMALL_NET[F64])
    whole = Runs(PathSum(torch.rand(1, 2, 40, 3, dtype=F64)), 3, (1, 48, 1))
    result = slid(whole, (1, 2, 40, 50), windows, convolve)
    assert isinstance(result, Runs) and result.lengths == (1, 1, 46, 1, 1)
    close(result.mantissa, convolve(whole.mantissa), SMALL_NET[F64])


def test_a_map_of_little_middle_is_computed_whole():
    path, _ = in_runs(edged(5, 3, 6), edged(5, 3, 6))
    result = slid(path, path.shape, [Window(1, 1, 3)] * 2, lambda x: F.avg_pool2d(x, 3, 1, 1))
    assert not isinstance(result, Runs) and result.shape == path.shape


def test_sums_of_maps_with_other_edges():
    first, _ = in_runs(edged(1, 9, 1), edged(2, 10, 0))
    second, _ = in_runs(edged(3, 6, 2), edged(0, 10, 2))
    added = total([first, second])
    assert isinstance(added, Runs) and added.lengths == (1, 1, 1, 6, 1, 1)
    assert isinstance(added.once, Runs) and added.once.lengths == (1, 1, 8, 1, 1)
    assert torch.equal(added.mantissa, first.mantissa + second.mantissa)


class Maps(nn.Module):
    """Residuals, strides, dilation, groups, pooling, uneven windows, and an output for each
    position."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.deep = nn.Conv2d(4, 4, 3, padding="same", groups=4)
        self.wide = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.uneven = nn.Conv2d(4, 4, (2, 3), padding=(0, 1), stride=(1, 2))
        self.back = nn.ConvTranspose2d(4, 3, 2, stride=2) if dense else nn.Identity()
        self.head = None if dense else nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x))))
        x = x + self.deep(F.relu(x))
        x = F.relu(x + F.max_pool2d(self.wide(x), 3, 1, 1, ceil_mode=True))
        x = F.relu(self.uneven(x))
        return self.back(x) if self.head is None else self.head(x.mean((2, 3)))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("density", [None, 0.6])
@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_networks_with_large_maps(criterion: str, density: float | None, dense: bool, monkeypatch):
    model = nets.seeded(lambda: Maps(dense), 3).double()
    x = nets.random_batch((2, 64, 81), 2, 3).double()
    masks = nets.random_masks(model, density, 3) if density else None
    expected = px.score(model, x, criterion=criterion, masks=masks)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert_same(scores, expected, SMALL_NET[F64])
    positions: list[int] = []
    apply = SquaredConvolution.forward

    def spy(ctx, x: Tensor, *rest):
        positions.append(x.shape[2:].numel())
        return apply(ctx, x, *rest)

    monkeypatch.setattr(SquaredConvolution, "forward", staticmethod(spy))
    pxfast.score(model, x, criterion=criterion, masks=masks)
    computed = sum(positions)
    positions.clear()
    monkeypatch.setattr(edges, "WORTH", -1)
    pxfast.score(model, x, criterion=criterion, masks=masks)
    assert computed < sum(positions) / 4 if criterion == "px" else computed == sum(positions)
