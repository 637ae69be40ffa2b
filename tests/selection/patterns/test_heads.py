"""Attention heads: where they lie, and that a removed one computes nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_selection import POOL, Layers, check_selection
from torch import nn

import pxfast
from pxfast.errors import MaskError
from pxfast.patterns import HeadLayout, Heads


class Fused(nn.Module):
    """Attention as timm writes it."""

    def __init__(self, dim: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attn, self.mlp = attention, nn.Linear(8, 8)

    def forward(self, x):
        if isinstance(self.attn, nn.MultiheadAttention):
            return self.mlp(self.attn(x, x, x, need_weights=False)[0])
        return self.mlp(self.attn(x))


def packed() -> nn.MultiheadAttention:
    return nn.MultiheadAttention(8, 4, batch_first=True)


def separate() -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(8, 4, batch_first=True, kdim=6, vdim=5)
    assert layer.in_proj_weight is None
    return layer


def magnitudes(model: nn.Module) -> pxfast.Scores:
    return pxfast.Scores({n: p.detach().abs() for n, p in model.named_parameters() if p.dim() > 1})


ATTENTION = {"packed": packed, "separate": separate, "fused": Fused}


@st.composite
def attention_layers(draw: st.DrawFn):
    """Scores of two attention layers and one other, in any order, and the weights of each head."""
    layouts, shapes, weights = {}, {"fc": (2, 3)}, {}
    for layer in "ab":
        heads, size = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        layouts[layer] = HeadLayout(
            heads, outputs={f"{layer}.qkv": 3, f"{layer}.r": 1}, inputs={f"{layer}.proj": 1}
        )
        shapes[f"{layer}.qkv"], shapes[f"{layer}.r"] = (3 * heads * size, 2), (heads * size, 1, 2)
        shapes[f"{layer}.proj"] = (2, heads * size)
        for head, block, i, j in itertools.product(range(heads), range(3), range(size), range(2)):
            row, own = (block * heads + head) * size + i, weights.setdefault((layer, head), [])
            own.append((f"{layer}.qkv", 2 * row + j))
            if block == 0:
                own.append((f"{layer}.r", 2 * (head * size + i) + j))
                own.append((f"{layer}.proj", j * heads * size + head * size + i))
    scores, alive = {}, {}
    for name in draw(st.permutations(list(shapes))):
        size = torch.Size(shapes[name]).numel()
        values = st.lists(st.sampled_from(POOL), min_size=size, max_size=size)
        scores[name] = torch.tensor(draw(values)).view(shapes[name])
        if draw(st.booleans()):
            living = st.lists(st.booleans(), min_size=size, max_size=size)
            alive[name] = torch.tensor(draw(living)).view(shapes[name])
    return layouts, weights, scores, alive


@settings(max_examples=40, deadline=None)
@given(attention_layers(), st.data(), st.sampled_from([None, 0.01, 0.5]))
def test_equals_a_stable_sort_of_exact_sums(case, data, min_density):
    layouts, weights, scores, alive = case
    slow, first = Layers(scores, alive), [name[0] for name in scores]
    order = sorted(weights, key=lambda head: (first.index(head[0]), head[1]))
    units = [slow.unit(layer, weights[layer, head]) for layer, head in order]
    rest = {"fc": alive.get("fc", torch.ones(2, 3)).bool()}
    check_selection(data, slow, units, min_density, Heads(layouts), rest)


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("removed", range(4))
def test_slices_of_a_head(kind, removed):
    """Of scores that are 0 in one head's slices."""
    torch.manual_seed(removed)
    attention = ATTENTION[kind]()
    scores = {n: torch.ones_like(p) for n, p in attention.named_parameters() if p.dim() > 1}
    rows = slice(2 * removed, 2 * removed + 2)  # of each block of 8
    for name, score in scores.items():
        if "proj.weight" in name:
            score[:, rows] = 0
        else:
            for block in score.split(8):
                block[rows] = 0
    masks = pxfast.Scores(scores).masks(density=0.75, pattern=Heads().of(attention))
    for name, score in scores.items():
        assert torch.equal(masks[name], score.bool()), name


@pytest.mark.parametrize("kind", ["packed", "fused"])
def test_a_removed_head_leaves_the_others_as_they_were(kind):
    """The output is that of a model from which the head's columns are cut by hand."""
    torch.manual_seed(0)
    model = Block(ATTENTION[kind]()).eval()
    scores, x = magnitudes(model), torch.randn(2, 5, 8)
    masks = scores.masks(density=0.75, pattern=Heads().of(model))
    columns = masks["attn.out_proj.weight" if kind == "packed" else "attn.proj.weight"]
    gone = (~columns).all(0).nonzero()[:, 0]
    assert len(gone) == 2 and gone[0] % 2 == 0 and gone[1] == gone[0] + 1
    projection = model.attn.out_proj if kind == "packed" else model.attn.proj
    with torch.no_grad():
        saved = projection.weight.clone()
        projection.weight[:, gone] = 0
        expected = model(x)
        projection.weight.copy_(saved)
        torch.testing.assert_close(masks.apply_(model)(x), expected, rtol=0, atol=1e-6)
    assert masks["mlp.weight"].all()


def test_heads_compete_over_all_layers_in_parameter_order():
    model = nn.ModuleDict({"b": Fused(), "a": packed(), "c": nn.Linear(3, 3)})
    layouts = dict(reversed(Heads().of(model).layouts.items()))
    scores = {n: torch.ones_like(p) for n, p in model.named_parameters() if p.dim() > 1}
    for density, b, a in ((0.25, 2, 0), (0.5, 4, 0), (0.75, 4, 2)):
        masks = pxfast.Scores(scores).masks(density=density, pattern=Heads(layouts))
        assert int(masks["b.proj.weight"][0].sum()) == 2 * b
        assert int(masks["a.out_proj.weight"][0].sum()) == 2 * a
        assert masks["c.weight"].all()
        assert masks.provenance["pattern"] == "heads"
    scores["a.in_proj_weight"] += 1.0  # both layers have 4 heads of 64 weights
    masks = pxfast.Scores(scores).masks(density=0.5, pattern=Heads(layouts))
    assert not masks["b.qkv.weight"].any() and masks["a.in_proj_weight"].all()
    each = pxfast.Scores(scores).masks(density=0.5, pattern=Heads(layouts), scope="layer")
    assert [int(each[n].sum()) for n in ("b.qkv.weight", "a.in_proj_weight")] == [96, 96]
    floor = pxfast.Scores(scores).masks(density=0.5, pattern=Heads(layouts), min_density=0.2)
    assert [int(floor[n].sum()) for n in ("b.qkv.weight", "a.in_proj_weight")] == [48, 144]


def test_layouts_by_name_and_shared_keys():
    """Four query heads share two key heads: two groups."""
    layout = HeadLayout(2, outputs={"q": 1, "k": 1, "v": 1}, inputs={"o": 1})
    scores = {"q": torch.ones(8, 6), "k": torch.ones(4, 6), "v": torch.ones(4, 6),
              "o": torch.ones(6, 8)}  # fmt: skip
    scores["q"][:4] = 0.5
    masks = pxfast.Scores(scores).masks(density=0.5, pattern=Heads({"attention": layout}))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"q": 24, "k": 12, "v": 12,
                                                                        "o": 24}  # fmt: skip
    assert masks["q"][4:].all() and masks["o"][:, 4:].all() and masks["v"][2:].all()


def test_a_weight_that_was_removed_adds_nothing_and_stays_removed():
    model = Fused()
    scores = {n: torch.ones_like(p) for n, p in model.named_parameters() if p.dim() > 1}
    before = {name: torch.ones_like(score) for name, score in scores.items()}
    before["proj.weight"][:, :3] = 0
    scores["proj.weight"][:, 0] = 100
    pattern = Heads().of(model)
    masks = pxfast.Scores(scores).masks(density=0.5, pattern=pattern, masks=before)
    assert masks["proj.weight"].any(0).int().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    masks = pxfast.Scores(scores).masks(density=0.75, pattern=pattern, masks=before)
    assert masks["proj.weight"].any(0).int().tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    everything = pxfast.Scores(scores).masks(density=1.0, pattern=pattern, masks=before)
    assert everything.kept == 256 - 24


def test_attention_without_scores_is_left_out_and_half_scored_refused():
    model = nn.ModuleDict({"a": Fused(), "b": Fused()})
    scores = dict(magnitudes(model))
    pattern = Heads().of(model)
    some = {name: score for name, score in scores.items() if not name.startswith("b")}
    assert list(pxfast.Scores(some).masks(density=0.5, pattern=pattern)) == list(some)
    del scores["b.proj.weight"]
    with pytest.raises(MaskError, match=r"'b' is scored in part; .* no score: b\.proj\.weight"):
        pxfast.Scores(scores).masks(density=0.5, pattern=pattern)
    with pytest.raises(MaskError, match="finds none that is scored"):
        pxfast.Scores({"fc": torch.rand(2, 2)}).masks(density=0.5, pattern=pattern)


def test_names_of_a_transformers_vit():
    prefix = "vit.encoder.layer.{}.attention"
    layouts, scores = {}, {}
    for index in range(2):
        name = prefix.format(index)
        outputs = {f"{name}.attention.{x}.weight": 1 for x in ("query", "key", "value")}
        inputs = {f"{name}.output.dense.weight": 1}
        layouts[name] = HeadLayout(3, outputs, inputs)
        scores |= {weight: torch.full((6, 6), 1.0 + index) for weight in (*outputs, *inputs)}
    masks = pxfast.Scores(scores).masks(density=0.5, pattern=Heads(layouts))
    assert [layer.kept for layer in masks.layers] == [0] * 4 + [36] * 4


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: Heads().of(nn.Linear(2, 2)), MaskError, "has no nn.MultiheadAttention"),
    (lambda: Heads({"a": 4}), TypeError, "'a' must have a HeadLayout, got 4"),
    (lambda: HeadLayout(0, {"q": 1}), ValueError, "heads must be a whole number >= 1, got 0"),
    (lambda: HeadLayout(2, {"q": 1.5}), ValueError, "q must be a whole number >= 1, got 1.5"),
    (lambda: Heads({x: HeadLayout(2, {"q": 1}) for x in "ab"}), ValueError,
     "'q' belongs to 'a' and to 'b'"),
    (lambda: pxfast.Scores({"q": torch.rand(2, 2)}).masks(density=0.5, pattern="heads"), MaskError,
     r"knows no attention layers: give Heads\(\)\.of\(model\)"),
    (lambda: pxfast.Scores({"q": torch.rand(9, 2)}).masks(
        density=0.5, pattern=Heads({"a": HeadLayout(2, {"q": 1})})), MaskError,
     r"'q' of shape \[9, 2\] cannot hold 1 x 2 heads along dimension 0"),
    (lambda: pxfast.Scores({"q": torch.rand(9)}).masks(
        density=0.5, pattern=Heads({"a": HeadLayout(3, {}, {"q": 1})})), MaskError,
     r"'q' of shape \[9\] cannot hold 1 x 3 heads along dimension 1"),
])  # fmt: skip
def test_bad_layouts(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_given_layouts_are_not_searched_for():
    given = Heads({"a": HeadLayout(2, {"q": 1})})
    assert given.of(nn.Linear(2, 2)) is given
