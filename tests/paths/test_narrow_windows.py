"""Windows that are cut out of rolled images, gates and zero scales leave path sums narrow."""

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
from pxfast.paths import rearranged
from pxfast.paths.opening import Dots, Entries
from pxfast.paths.passes import Passes
from pxfast.paths.pathsum import PathSum, Runs
from pxfast.paths.rules import geometry, matmul, shape

SIDE, WINDOW, CHANNELS, HEADS = 8, 4, 6, 2


class Windows(nn.Module):
    """Shifted windows of a rolled image, attention under a mask, and patch merging."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.embed = nn.Conv2d(2, CHANNELS, 2, stride=2)
        self.norm = nn.LayerNorm(CHANNELS)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.proj = nn.Linear(CHANNELS, CHANNELS)
        self.merge = nn.Linear(4 * CHANNELS, 5)
        self.head = nn.Linear(5, 3)
        region = torch.zeros(SIDE, SIDE)
        for index, rows in enumerate((slice(0, -WINDOW), slice(-WINDOW, -2), slice(-2, None))):
            for other, columns in enumerate(
                (slice(0, -WINDOW), slice(-WINDOW, -2), slice(-2, None))
            ):
                region[rows, columns] = 3 * index + other
        region = self.partition(region[None, :, :, None]).squeeze(-1)
        self.register_buffer("mask", -100.0 * (region[:, None] != region[:, :, None]))

    @staticmethod
    def partition(x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5)
        return x.contiguous().view(-1, WINDOW * WINDOW, c)

    def attended(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).reshape(len(x), -1, 3, HEADS, CHANNELS // HEADS).permute(2, 0, 3, 1, 4)
        )
        mask = self.mask.to(x.dtype)
        if self.fused:
            mask = mask.repeat(len(x) // len(mask), 1, 1).unsqueeze(1)
            return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        logits = q @ k.transpose(-2, -1) / math.sqrt(CHANNELS // HEADS)
        tokens = logits.shape[-1]
        logits = logits.view(-1, len(mask), HEADS, tokens, tokens) + mask[:, None]
        probabilities = logits.view(-1, HEADS, tokens, tokens).softmax(-1)
        return (probabilities @ v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        y = self.partition(torch.roll(self.norm(x), (-2, -2), (1, 2)))
        y = self.proj(self.attended(y)).view(-1, 2, 2, WINDOW, WINDOW, CHANNELS)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, SIDE, SIDE, CHANNELS)
        x = x + torch.roll(y, (2, 2), (1, 2))
        x = x.reshape(-1, 4, 2, 4, 2, CHANNELS).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.head(self.merge(x).mean((1, 2)))


def windows(fused: bool) -> nn.Module:
    return seeded(lambda: Windows(fused), 2).double()


def images() -> Tensor:
    return random_batch((2, 2 * SIDE, 2 * SIDE)).double()


def rows_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows every linear layer of g gets, filled while a model is scored."""
    rows = []
    squared = ops.squared_linear

    def spy(x: Tensor, *rest: Tensor) -> Tensor:
        rows.append(math.prod(x.shape[:-1]))
        return squared(x, *rest)

    monkeypatch.setattr(ops, "squared_linear", spy)
    return rows


@pytest.mark.parametrize("fused", [True, False])
def test_windows_are_one_token_in_g(fused, monkeypatch):
    rows = rows_seen(monkeypatch)
    pxfast.score(windows(fused), images())
    assert rows == [1] * 4


@pytest.mark.parametrize("fused", [True, False])
def test_h_is_one_number_for_each_token(fused, monkeypatch):
    """Where images are rolled and cut into windows."""
    sizes = []
    moved = shape.moved

    def spy(*arguments: object) -> object:
        result = moved(*arguments)
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if x.path is not None and (x.value.dim() > 4 or x.value.shape[1] == SIDE):
                sizes.append(x.path.mantissa.numel())
        return result

    monkeypatch.setattr(shape, "moved", spy)
    monkeypatch.setattr(Passes, "data_cancels", lambda self, batch: False)
    pxfast.score(windows(fused), images())
    assert max(sizes) == len(images()) * SIDE * SIDE


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("fused", [True, False])
def test_scores_are_those_of_what_is_written_out(fused, criterion, monkeypatch):
    model = windows(fused)
    scores = pxfast.score(model, images(), criterion=criterion)
    monkeypatch.setattr(geometry.Convolution, "is_even", lambda self: False)
    monkeypatch.setattr(matmul, "even", lambda sums: sums)
    wide = pxfast.score(model, images(), criterion=criterion)
    for name, score in scores.items():
        close(score, wide[name], SMALL_NET[torch.float64], name)


# ---- movements


MOVEMENTS = {
    "reshape": lambda x: x.reshape(2, 2, 4, 2, 3, 5),
    "merged": lambda x: x.flatten(0, 1),
    "permute": lambda x: x.permute(2, 0, 3, 1),
    "roll": lambda x: torch.roll(x, (1, 2), (1, 2)),
    "roll of all": lambda x: torch.roll(x, 3),
    "flip": lambda x: x.flip(1, 3),
    "chunk": lambda x: x.chunk(2, 2),
    "split": lambda x: torch.split(x, [1, 4], -1),
    "unbind": lambda x: x.unbind(1),
    "select": lambda x: x.select(3, -1),
    "narrow": lambda x: x.narrow(2, 1, 2),
    "slices": lambda x: x[:, 1::2, ..., None, 2],
    "an empty slice": lambda x: x[:, :, 7:],
    "an empty slice, reshaped": lambda x: x[:, :, 7:].reshape(0, 7),
    "an index": lambda x: x[0, -1],
    "indices": lambda x: x[:, torch.tensor([0, 3, 3])],
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "expand": lambda x: x.unsqueeze(0).expand(3, -1, -1, -1, -1),
    "repeat": lambda x: x.repeat(2, 1, 1, 1),
    "transposed": lambda x: x.mT,
}


class Moved(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> object:
        return MOVEMENTS[self.name](x)


@pytest.mark.parametrize("name", MOVEMENTS)
def test_a_movement_of_what_is_narrow(name, monkeypatch):
    """Every way of being constant: the same entries as of the tensor written out, and narrow."""
    whole = torch.rand(4, 4, 6, 5, dtype=torch.float64)
    for constant in range(16):
        dims = [dim for dim in range(4) if constant >> dim & 1]
        held = whole
        for dim in dims:
            held = held.narrow(dim, 0, 1)
        seen = moved_path(name, held, whole.shape)
        expected = MOVEMENTS[name](held.expand(whole.shape))
        pieces = (
            [(seen, expected)] if isinstance(expected, Tensor) else zip(seen, expected, strict=True)
        )
        for path, tensor in pieces:
            assert torch.equal(path.mantissa.expand(tensor.shape), tensor), (name, dims)
            if len(dims) == 4 and tensor.numel() and name != "roll of all":
                assert path.mantissa.numel() == 1 or name in ("repeat", "indices"), name


def moved_path(name: str, held: Tensor, full: torch.Size) -> object:
    from pxfast.paths.network import Network
    from pxfast.paths.tensor import Interpreter
    from pxfast.paths.weights import Weights

    weights = Weights(nn.Identity(), {}, lambda name: True, torch.float64)
    network = Network(
        weights, True, False, True, False, "running", torch.device("cpu"), torch.float64
    )
    with Interpreter(network), torch.no_grad():
        made = MOVEMENTS[name](network.tensor(torch.zeros(full).double(), PathSum(held)))
    return made.path if isinstance(made, Tensor) else [each.path for each in made]


def test_shapes_fall_into_groups():
    groups = rearranged._groups
    assert list(groups([2, 3, 4], [6, 4])) == [((0, 1), (0,)), ((2,), (1,)), ((), ())]
    assert list(groups([1, 64, 5], [8, 8, 5])) == [((0, 1), (0, 1)), ((2,), (2,)), ((), ())]
    assert list(groups([6], [2, 3, 1])) == [((0,), (0, 1)), ((), (2,))]


# ---- allowed pairs, gates of runs, scales of zero


@pytest.mark.parametrize("narrow_x", range(16))
@pytest.mark.parametrize("narrow_y", [0, 3, 5, 8, 15])
def test_allowed_pairs_are_counted(narrow_x, narrow_y):
    generator = torch.Generator().manual_seed(3)
    full_x, full_y = (4, 2, 5, 3), (4, 2, 3, 6)

    def held(shape: tuple[int, ...], bits: int) -> Tensor:
        sizes = [1 if bits >> dim & 1 else size for dim, size in enumerate(shape)]
        return torch.rand(sizes, generator=generator, dtype=torch.float64)

    x, y = held(full_x, narrow_x), held(full_y, narrow_y)
    dots = Dots(Entries(PathSum(x), full_x), Entries(PathSum(y), full_y))
    products = x.expand(full_x) @ y.expand(full_y)
    for lead in ((4, 1), (1, 1), (4, 2), ()):
        allowed = torch.rand(*lead, 5, 6, generator=generator) > 0.4
        total = dots.over(allowed).mantissa
        torch.testing.assert_close(total, (products * allowed).sum())


class Gated(nn.Module):
    """A class token before equal patches, and a gated layer with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2, 4, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.gate, self.up = nn.Linear(4, 6), nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.down = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.down(self.norm(F.silu(self.gate(x)) * self.up(x))).mean(1)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_a_gate_leaves_runs_as_they_are(criterion, monkeypatch):
    model, x = seeded(Gated, 2).double(), random_batch((2, 6, 6)).double()
    rows = rows_seen(monkeypatch)
    scores = pxfast.score(model, x, criterion=criterion)
    assert criterion == "px-joint" or max(rows) == 2
    monkeypatch.setattr(shape, "_in_runs", lambda *pieces: None)
    wide = pxfast.score(model, x, criterion=criterion)
    for name, score in scores.items():
        close(score, wide[name], SMALL_NET[torch.float64], name)


def test_the_sum_of_runs():
    once = torch.rand(1, 2, 3, dtype=torch.float64)
    runs = Runs(PathSum(once, 5), 1, (1, 6))
    expected = torch.cat([once[:, :1], once[:, 1:].expand(-1, 6, -1)], 1).sum()
    total = runs.summed((1, 7, 3))
    torch.testing.assert_close(total.mantissa * 2.0**total.exponent, expected * 2.0**5)
    narrow = PathSum(once[..., :1], 2).summed((4, 2, 5))
    torch.testing.assert_close(narrow.mantissa, once[..., :1].sum() * 20)


class Residual(nn.Module):
    """A gated branch behind a norm whose scale is 0, as SwinV2 has them before training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.norm(self.value(x) * torch.sigmoid(self.gate(x))))


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_a_scale_of_zero_makes_no_side_rows(criterion, monkeypatch):
    """It is no part of the structure, and no second pass over the data asks for paths behind it."""
    model = seeded(Residual, 2)
    nn.init.zeros_(model.norm.weight)
    flags: dict[str, Tensor] = {}
    runs: list[str] = []
    settle, joint = Passes._settle, Passes.joint

    def noted(self: Passes) -> None:
        flags.update(self.weights.rows or {})
        settle(self)

    def counted(self: Passes, data: object) -> float:
        runs.append(self.weights.purpose)
        return joint(self, data)

    monkeypatch.setattr(Passes, "_settle", noted)
    monkeypatch.setattr(Passes, "joint", counted)
    scores = pxfast.score(model, random_batch((4,)), criterion=criterion)
    assert {name: bool(rows.all()) for name, rows in flags.items()} == {
        "first.weight": True, "gate.weight": False, "value.weight": True, "head.weight": True,
    }  # fmt: skip
    assert not scores["value.weight"].any() and not scores["gate.weight"].any()
    assert runs == ["scores"] * (criterion == "px-joint")


class Empty(nn.Module):
    """Entries that an empty slice takes, summed, concatenated, and among the outputs."""

    def __init__(self, empty: bool) -> None:
        super().__init__()
        self.empty = empty
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        if self.empty:
            none = x[:, 9:]
            x = torch.cat([none, x], 1) + none.sum(1, keepdim=True) + F.pad(none, (0, 0, 1, 0))
        x = self.head(x)
        return x, x[:, 9:] if self.empty else x.new_zeros(len(x), 0, 2)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_an_empty_slice_adds_no_path(criterion):
    x = random_batch((5, 3)).double()
    scores, expected = (
        pxfast.score(seeded(lambda empty=empty: Empty(empty), 1).double(), x, criterion=criterion)
        for empty in (True, False)
    )
    for name, score in expected.items():
        close(scores[name], score, SMALL_NET[torch.float64], name)
