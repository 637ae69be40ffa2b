"""Side branches of attention: totals, splits, permutations, and that none of it reaches the main
stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attending import HEADS, TOKENS, WIDTH, attending, totals
from middles import data_pass_forced
from nets import random_batch, random_masks, seeded
from tolerances import REORDERED, SMALL_NET, close
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pxfast
from pxfast.paths.network import Network
from pxfast.paths.passes import Passes
from pxfast.paths.weight import Weight

CRITERIA = ("px", "px-joint")
EXACT = SMALL_NET[torch.float64]


class Block(nn.Module):
    """A transformer block with separate projections, LayerNorm, GELU and a gated MLP."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * 6), nn.Linear(6, width)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        parts = (self.heads(layer(y)) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(*parts)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        gate, value = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class Transformer(nn.Module):
    """Tokens with a class token and positions through some blocks."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, TOKENS + 1, 4))
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x)], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def transformer(seed: int = 3) -> nn.Module:
    return seeded(Transformer, seed).double()


def inputs(samples: int = 6) -> Tensor:
    return random_batch((TOKENS, 3), samples, 11).double()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_projections_carry_the_total_of_the_value_branch(criterion, density):
    model = transformer()
    masks = random_masks(model, density)
    scores = pxfast.score(model, inputs(), criterion=criterion, masks=masks)
    for block in ("blocks.0", "blocks.1"):
        value = scores[f"{block}.v.weight"].sum()
        for name in "qko":
            close(scores[f"{block}.{name}.weight"].sum(), value, EXACT, f"{block}.{name}")
        gate, up = scores[f"{block}.up.weight"].chunk(2)
        close(gate.sum(), up.sum(), EXACT, f"{block}.up")
        close(scores[f"{block}.down.weight"].sum(), up.sum(), EXACT, f"{block}.down")
    for name in ("stem.weight", "head.weight"):  # each cuts every path once
        close(scores[name].sum(), torch.ones(()), EXACT, name)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_splits_of_the_data(criterion):
    model, x = transformer(), inputs()
    masks = random_masks(model, 0.5)
    whole = pxfast.score(model, x, criterion=criterion, masks=masks)
    for parts in ([x[:1], x[1:4], x[4:]], [x, x]):
        split = pxfast.score(model, parts, criterion=criterion, masks=masks)
        for name, score in whole.items():
            close(split[name], score, EXACT, name)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_permutation_of_heads_and_tokens(criterion):
    model, x = attending(F.scaled_dot_product_attention), inputs()
    before = pxfast.score(model, x, criterion=criterion)
    rows = torch.arange(3 * HEADS * WIDTH).view(3, HEADS, WIDTH).flip(1).flatten()
    with torch.no_grad():
        model.qkv.weight.copy_(model.qkv.weight[rows])
        model.qkv.bias.copy_(model.qkv.bias[rows])
        model.proj.weight.copy_(model.proj.weight[:, rows[: HEADS * WIDTH]])
    after = pxfast.score(model, x.flip(1), criterion=criterion)
    close(after["qkv.weight"], before["qkv.weight"][rows], REORDERED, "qkv")
    close(after["proj.weight"], before["proj.weight"][:, rows[: HEADS * WIDTH]], REORDERED, "proj")
    close(after["stem.weight"], before["stem.weight"], REORDERED, "stem")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_side_scores_stay_out_of_the_main_stream(criterion):
    """Scaling the queries changes A, but in g nothing, and no score of what comes before."""
    model, x = transformer(), inputs()
    before = pxfast.score(model, x, criterion="px")
    with torch.no_grad():
        for block in model.blocks:
            block.q.weight *= 3
    after = pxfast.score(model, x, criterion="px")
    for name in before:
        if ".q." not in name:
            close(after[name], before[name], REORDERED, name)
    one = attending(F.scaled_dot_product_attention)
    scores = pxfast.score(one, x, criterion=criterion)
    close(scores["stem.weight"].sum(), torch.ones(()), EXACT, "stem")
    close(scores["head.weight"].sum(), torch.ones(()), EXACT, "head")
    assert totals(scores, one)["q"] < 1


class Ahead(nn.Module):
    """A layer ahead of the query projection is part of its side branch."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.after(self.before(q)), k, v)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_layers_within_the_branch_total_the_same(criterion):
    model = attending(Ahead())
    scores = pxfast.score(model, inputs(), criterion=criterion)
    sums = totals(scores, model)
    for name in ("attend.before.weight", "attend.after.weight"):
        close(scores[name].sum(), sums["v"], EXACT, name)
    close(sums["q"], sums["v"], EXACT, "q")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_learned_query_counts_as_ones(criterion):
    query = torch.linspace(-1, 1, HEADS * 3 * WIDTH).view(1, HEADS, 3, WIDTH).double()

    class Pooling(nn.Module):
        def __init__(self, learned: bool) -> None:
            super().__init__()
            self.query = nn.Parameter(query.float())
            self.learned = learned

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            one = self.query.expand(len(k), -1, -1, -1)
            pooled = F.scaled_dot_product_attention(one, k, v)
            other = (one @ k.mT / WIDTH**0.5).softmax(-1) @ v
            pooled = pooled if self.learned else other
            return torch.cat([pooled, pooled[:, :, :2]], 2)

    models = [attending(Pooling(learned)) for learned in (True, False)]
    scores = [pxfast.score(model, inputs(), criterion=criterion) for model in models]
    for name, score in scores[0].items():
        close(scores[1][name], score, EXACT, name)
    sums = totals(scores[0], models[0])
    close(sums["k"], sums["v"], EXACT, "k")
    assert sums["q"] == 0
    squares = models[0].get_parameter("qkv.weight").detach()[4:8] ** 2
    if criterion == "px":  # ℓ of k is its path sum, over all tokens alike: that of the stem
        entering = (models[0].get_parameter("stem.weight").detach() ** 2).sum(1)
        expected = squares * entering
        close(scores[0]["qkv.weight"][4:8] / sums["k"], expected / expected.sum(), EXACT, "k")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_masks_of_a_learned_query_s_projection(criterion):
    """A weight that no path reaches is masked in the values as well."""

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.linspace(-1, 1, HEADS * TOKENS * WIDTH))
            self.project = nn.Linear(WIDTH, WIDTH)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            query = self.project(self.query.view(1, HEADS, TOKENS, WIDTH))
            return F.scaled_dot_product_attention(query.expand(len(k), -1, -1, -1), k, v)

    model = attending(Pooling())
    masks = {"attend.project.weight": torch.tensor([[True, False], [False, False]])}
    with pytest.warns(UserWarning, match=r"never uses these weights.*attend\.project\.weight"):
        scores = pxfast.score(model, inputs(), criterion=criterion, masks=masks)
    with torch.no_grad():
        model.get_parameter("attend.project.weight").mul_(masks["attend.project.weight"])
    expected = pxfast.score(model, inputs(), criterion=criterion)
    for name, score in expected.items():
        close(scores[name], score, EXACT, name)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_empty_branch_scores_zero(criterion):
    model = transformer()
    masks = random_masks(model, 0.5)
    masks["blocks.0.q.weight"][:] = False
    with data_pass_forced(), pytest.warns(UserWarning, match=r"score 0: blocks\.0 \(Block\)$"):
        scores = pxfast.score(model, inputs(), criterion=criterion, masks=masks)
    assert scores.provenance["dead_gates"] == ["blocks.0 (Block)"]
    assert scores["blocks.0.q.weight"].sum() == scores["blocks.0.k.weight"].sum() == 0
    assert scores["blocks.0.v.weight"].sum() > 0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_backward_of_a_branch_ends_where_value_paths_begin(criterion, monkeypatch):
    """Cutting it there saves work and changes nothing."""
    model, masks = attending(F.scaled_dot_product_attention), {}
    calls = []
    whole = pxfast.score(model, inputs(), criterion=criterion, masks=masks)
    ends = Weight.ends_side_branch

    def never(weight: Weight) -> bool:
        calls.append(ends(weight))
        return False

    monkeypatch.setattr(Weight, "ends_side_branch", never)
    uncut = pxfast.score(model, inputs(), criterion=criterion, masks=masks)
    assert any(calls)
    for name, score in whole.items():
        close(score, uncut[name], EXACT, name)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_separate_projections_end_it_as_well(criterion, monkeypatch):
    """Their inputs lie on value paths by way of the values' projection."""
    model, masks = transformer(), random_masks(transformer(), 0.5)
    whole = pxfast.score(model, inputs(), criterion=criterion, masks=masks)
    ends, ended = Weight.ends_side_branch, []

    def never(weight: Weight) -> bool:
        ended.append((weight.source.name, ends(weight)) if weight.weights.side is not None else "")
        return False

    monkeypatch.setattr(Weight, "ends_side_branch", never)
    uncut = pxfast.score(model, inputs(), criterion=criterion, masks=masks)
    assert {(f"blocks.{i}.{name}.weight", True) for i in (0, 1) for name in "qk"} <= set(ended)
    for name, score in whole.items():
        close(score, uncut[name], EXACT, name)


class Count(TorchDispatchMode):
    """Counts the operations of torch."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_cost_of_all_branches_is_linear_in_depth(criterion, monkeypatch):
    gather, count = Passes._gather, Count()

    def counted(self: Passes, network: Network) -> None:
        with count:
            gather(self, network)

    monkeypatch.setattr(Passes, "_gather", counted)
    totals = []
    for depth in (2, 4, 6):
        count.total = 0
        pxfast.score(seeded(lambda depth=depth: Transformer(depth), 3).double(), inputs(),
                     criterion=criterion)  # fmt: skip
        totals.append(count.total)
    assert 0 < totals[2] - totals[1] == totals[1] - totals[0]


class Twice(nn.Module):
    """A packed projection whose input, at its second use, only shapes a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.packed = nn.Linear(2, 2), nn.Linear(2, 4)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key, value = self.packed(v).chunk(2, -1)
        other, _ = self.packed(self.before(q)).chunk(2, -1)
        return F.scaled_dot_product_attention(other, k + key, value)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_projection_used_within_a_branch_as_well(criterion):
    model = attending(Twice())
    scores = pxfast.score(model, inputs(), criterion=criterion)
    assert scores["attend.before.weight"].sum() > 0
    assert totals(scores, model)["q"] > 0
