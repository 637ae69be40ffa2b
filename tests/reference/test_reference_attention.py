"""Attention in the literal reference: against sums over all its paths written out with loops, and
the identities that hold for whole blocks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from nets import random_batch, random_masks, seeded
from tolerances import REORDERED, TINY_REFERENCES, close
from torch import Tensor, nn

from pxfast.reference import px

CRITERIA = ["px", "px-joint"]
TOKENS, WIDTH = 3, 4


class Attention(nn.Module):
    """proj(softmax(q kᵀ/√d + mask + bias) v) on [N, T, C], in the spelling that a subclass adds."""

    def __init__(self, heads: int = 2, mask: Tensor | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, 3)
        self.bias = nn.Parameter(torch.randn(heads, TOKENS, TOKENS) * 60)  # forbids nothing
        self.register_buffer("mask", torch.zeros(TOKENS, TOKENS) if mask is None else mask)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask + self.bias)


class Eager(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self.bias
        return F.dropout((logits + self.mask).softmax(-1), 0.1, self.training) @ v


class Einsum(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = torch.einsum("nhic,nhjc->nhij", q, k) / math.sqrt(q.shape[-1])
        probabilities = F.softmax(logits + self.bias + self.mask, dim=-1)
        return torch.einsum("nhij,nhjc->nhic", probabilities, v)


class Batched(Attention):
    """baddbmm, a mask that is filled in, windows that are views."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = (-1, TOKENS, q.shape[-1])
        q, k = q.reshape(shape), k.reshape(shape)
        bias = self.bias.expand(v.shape[0], -1, -1, -1).flatten(0, 1)
        logits = torch.baddbmm(bias, q, k.mT, beta=1.0, alpha=q.shape[-1] ** -0.5)
        logits = logits.view(-1, self.heads, TOKENS, TOKENS).masked_fill(self.mask < -50, -100)
        return torch.bmm(logits.flatten(0, 1).softmax(-1), v.reshape(shape)).view_as(v)


WINDOW = torch.tensor([[0.0, 0.0, -100.0], [0.0, 0.0, 0.0], [-100.0, 0.0, 0.0]])
CAUSAL = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
MASKS = {"all": None, "window": WINDOW, "causal": CAUSAL}


def by_hand(model, x, criterion, masks):
    """S/R or S/J of the four weights: one term for every path, in loops over its stations.

    A value path: input c of token j, channel d of v, token i, output o. What opens a head: input a
    of token i, channel d of q; input b of token j, channel d of k.
    """
    mask = {name: masks.get(name, torch.ones_like(p)).tolist() for name, p in squares(model)}
    square = {name: p.tolist() for name, p in squares(model)}
    x2 = (x**2).tolist()
    A2 = probabilities(model, x, masks).square().tolist()  # [n, h, i, j]
    allowed = (model.mask > -50).tolist()
    size, heads = WIDTH // model.heads, range(model.heads)
    paths = [(h, h * size + d, i, j, c, o) for h in heads for d in range(size)
             for i, j in itertools.product(range(TOKENS), repeat=2) if allowed[i][j]
             for c in range(WIDTH) for o in range(3)]  # fmt: skip
    s = [[0.0] * 3 for _ in range(TOKENS)]
    for n, (h, d, i, j, c, o) in itertools.product(range(len(x)), paths):
        s[i][o] += mask["proj.weight"][o][d] * A2[n][h][i][j] * mask["v.weight"][d][c] * x2[n][j][c]
    scores = {name: torch.zeros_like(p) for name, p in squares(model)}
    side, ell, total = {name: torch.zeros_like(p) for name, p in squares(model)}, 0.0, 0.0
    for h, d, i, j, c, o in paths:
        weights = square["proj.weight"][o][d] * square["v.weight"][d][c]
        if criterion == "px":
            term = s[i][o] * weights / sum(allowed[i])
        else:
            term = weights * sum(A2[n][h][i][j] * x2[n][j][c] for n in range(len(x)))
        scores["proj.weight"][o][d] += term
        scores["v.weight"][d][c] += term
        total += term
    for _, d, i, j, a, o in paths:
        for b in range(WIDTH) if o == 0 else ():
            term = square["q.weight"][d][a] * square["k.weight"][d][b]
            if criterion == "px-joint":
                term *= sum(x2[n][i][a] * x2[n][j][b] for n in range(len(x)))
            side["q.weight"][d][a] += term
            side["k.weight"][d][b] += term
            ell += term
    for name in ("q.weight", "k.weight"):
        scores[name] = side[name] * total / ell
    return {name: score / total for name, score in scores.items()}


def squares(model):
    names = ("q.weight", "k.weight", "v.weight", "proj.weight")
    return [(name, model.get_parameter(name).detach() ** 2) for name in names]


def probabilities(model, x, masks):
    """A of the real, masked network, [N, H, T, T]."""
    state = {name: p * masks[name] if name in masks else p for name, p in model.named_parameters()}
    q, k = (F.linear(x, state[f"{n}.weight"], state[f"{n}.bias"]) for n in ("q", "k"))
    q, k = model.split(q), model.split(k)
    logits = q @ k.mT / math.sqrt(q.shape[-1]) + model.mask + model.bias
    return logits.softmax(-1).detach()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [1, 2])
def test_is_the_sum_over_paths(heads, mask, criterion, masked):
    model = seeded(lambda: Attention(heads, MASKS[mask]), 1).double()
    x = random_batch((TOKENS, WIDTH), 2).double()
    masks = random_masks(model, 0.6) if masked else {}
    if masked:
        masks = {name: mask.double() for name, mask in masks.items()}
    expected = by_hand_masked(model, x, criterion, masks)
    scores = px.score(model, x, criterion=criterion, masks=masks)
    assert set(scores) == set(expected)
    for name, score in scores.items():
        close(score, expected[name], TINY_REFERENCES, name)


def by_hand_masked(model, x, criterion, masks):
    """θ²·M in every term: as if the masked weights were zero."""
    zeroed = seeded(lambda: Attention(model.heads, model.mask.float()), 1).double()
    with torch.no_grad():
        for name, mask in masks.items():
            zeroed.get_parameter(name).mul_(mask)
    return by_hand(zeroed, x, criterion, masks)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("mask", ["all", "window"])
@pytest.mark.parametrize("spelling", [Eager, Einsum, Batched])
def test_spellings_score_alike(spelling, mask, criterion):
    x = random_batch((TOKENS, WIDTH), 2).double()
    models = [seeded(lambda kind=kind: kind(2, MASKS[mask]), 1) for kind in (Attention, spelling)]
    expected, scores = (px.score(model, x, criterion=criterion) for model in models)
    assert list(scores) == list(expected)
    for name, score in scores.items():
        close(score, expected[name], REORDERED, name)


class Module(nn.Module):
    """torch's own module, whose in_proj_weight holds the rows of q, k and v."""

    def __init__(self, need_weights: bool, same: bool = True) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.need_weights, self.same = need_weights, same

    def forward(self, x: Tensor) -> Tensor:
        queries = x if self.same else x + 0  # two products, of some of the rows each
        return self.inner(queries, x, x, need_weights=self.need_weights)[0]


class Separate(nn.Module):
    """The same with layers of its own."""

    def __init__(self, inner: nn.MultiheadAttention) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out_proj = inner.out_proj
        rows = zip(inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3), strict=True)
        for layer, (weight, bias) in zip((self.q, self.k, self.v), rows, strict=True):
            layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2)
                   for layer in (self.q, self.k, self.v))  # fmt: skip
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_rows_of_a_fused_projection(criterion, need_weights, same):
    model = seeded(lambda: Module(need_weights, same), 3).double()
    x = random_batch((TOKENS, WIDTH), 2).double()
    mask = torch.rand(3 * WIDTH, WIDTH) < 0.7
    parts = {f"{n}.weight": rows for n, rows in zip("qkv", mask.chunk(3), strict=True)}
    scores = px.score(model, x, criterion=criterion, masks={"inner.in_proj_weight": mask})
    expected = px.score(Separate(model.inner), x, criterion=criterion, masks=parts)
    rows = torch.cat([expected[f"{name}.weight"] for name in ("q", "k", "v")])
    close(scores["inner.in_proj_weight"], rows, REORDERED)
    close(scores["inner.out_proj.weight"], expected["out_proj.weight"], REORDERED)


class Grouped(nn.Module):
    """Four query heads, two heads of keys and values, causal."""

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.q, self.kv, self.repeated = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), repeated

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(2, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, 2, 2)).permute(2, 0, 3, 1, 4)
        if self.repeated:
            k, v = (torch.stack([t, t], 2).flatten(1, 2) for t in (k, v))
        grouped = {"is_causal": True, "enable_gqa": not self.repeated}
        return F.scaled_dot_product_attention(q, k, v, **grouped)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_grouped_queries_are_those_of_repeated_keys_and_values(criterion):
    x = random_batch((TOKENS, WIDTH), 2).double()
    models = [seeded(lambda repeated=r: Grouped(repeated), 3).double() for r in (True, False)]
    expected, scores = (px.score(model, x, criterion=criterion) for model in models)
    for name, score in scores.items():
        close(score, expected[name], REORDERED, name)
    assert float(scores["q.weight"].sum()) == pytest.approx(1, rel=REORDERED)
    assert float(scores["kv.weight"].sum()) == pytest.approx(2, rel=REORDERED)


class Pooled(nn.Module):
    """A learned query looks at all tokens."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.written_out = written_out
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.query.expand(len(x), -1, -1))
        if self.written_out:
            return (q @ self.k(x).mT / 2).softmax(-1) @ self.v(x)
        return F.scaled_dot_product_attention(q, self.k(x), self.v(x))


@pytest.mark.parametrize("written_out", [False, True])
def test_a_learned_query_counts_as_ones(written_out):
    """In g, ℓ = Σ_jcb 1 · W_k²[c, b]: a score of k is its square over their sum."""
    model = seeded(lambda: Pooled(written_out), 1).double()
    scores = px.score(model, random_batch((TOKENS, WIDTH), 2))
    assert list(scores) == ["k.weight", "v.weight"]
    square = model.k.weight.detach() ** 2
    close(scores["k.weight"], square / square.sum(), TINY_REFERENCES)


class Block(nn.Module):
    """A whole small transformer with a class token, positions, LayerScale, qk-norm and SwiGLU."""

    def __init__(self, heads: int = 2, mixed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(3, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.normq, self.normk = nn.LayerNorm(WIDTH // heads), nn.LayerNorm(WIDTH // heads)
        self.mix = nn.Linear(heads, heads) if mixed else nn.Identity()
        self.mixed = nn.Linear(heads, heads) if mixed else nn.Identity()
        self.gamma1 = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.gamma2 = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.gate_up, self.down = nn.Linear(WIDTH, 10), nn.Linear(5, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        logits = self.normq(q) @ self.normk(k).transpose(-2, -1)
        A = self.mix(logits.permute(0, 2, 3, 1)).softmax(2)
        return self.proj((self.mixed(A).permute(0, 3, 1, 2) @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.position
        x = x + self.gamma1 * self.attend(self.norm1(x))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        x = x + self.gamma2 * self.down(F.silu(gate) * up)
        return self.head(x.mean(1))


def block(**options) -> tuple[Block, Tensor]:
    return seeded(lambda: Block(**options), 2).double(), random_batch((TOKENS, 3), 4).double()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("mixed", [False, True])
def test_totals_of_a_block(mixed, criterion, masked):
    """Every cut totals 1; queries, keys and what mixes their logits total what the values do."""
    model, x = block(mixed=mixed)
    masks = random_masks(model, 0.8) if masked else {}
    scores = px.score(model, x, criterion=criterion, masks=masks)
    total = {name: float(score.sum()) for name, score in scores.items()}
    one = pytest.approx(1, rel=REORDERED)
    assert (total["embed.weight"], total["head.weight"]) == (one, one)
    parts = [*scores["qkv.weight"].chunk(3), scores["proj.weight"]]
    parts += [scores["mix.weight"]] if mixed else []
    for part in parts:
        assert float(part.sum()) == pytest.approx(total["proj.weight"], rel=REORDERED)
    for part in scores["gate_up.weight"].chunk(2):
        assert float(part.sum()) == pytest.approx(total["down.weight"], rel=REORDERED)
    assert 0 < total["proj.weight"] < 1 and 0 < total["down.weight"] < 1
    assert "mixed.weight" not in scores  # A is what it leaves
    for name, mask in masks.items():
        if name in scores:
            assert (scores[name][~mask] == 0).all() and (scores[name] >= 0).all()


def test_tokens_and_positions_start_no_path():
    model, x = block()
    expected = px.score(model, x)
    with torch.no_grad():
        model.token.mul_(3)
        model.position.normal_()
    for name, score in px.score(model, x).items():  # dense: the data cancels, and so do the gates
        close(score, expected[name], REORDERED, name)


def test_a_learned_scale_counts_squared():
    kernels = []
    for factor in (0, 1, 2):
        model, x = block()
        with torch.no_grad():
            model.gamma2.mul_(factor)
        kernels.append(px.path_kernel(model, x.shape[1:]))
    none, once, twice = kernels
    close(twice - none, 4 * (once - none), TINY_REFERENCES)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_permuting_heads_permutes_the_scores(criterion):
    model, x = block()
    expected = px.score(model, x, criterion=criterion)
    size = WIDTH // 2
    with torch.no_grad():
        for tensor in (model.qkv.weight, model.qkv.bias):
            tensor.copy_(tensor.unflatten(0, (3, 2, size)).flip(1).flatten(0, 2))
        model.proj.weight.copy_(model.proj.weight.unflatten(1, (2, size)).flip(1).flatten(1))
    expected["qkv.weight"] = expected["qkv.weight"].unflatten(0, (3, 2, size)).flip(1).flatten(0, 2)
    expected["proj.weight"] = expected["proj.weight"].unflatten(1, (2, size)).flip(1).flatten(1)
    for name, score in px.score(model, x, criterion=criterion).items():
        close(score, expected[name], REORDERED, name)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_side_scores_of_batches_add_up(criterion):
    model, x = block()
    masks = random_masks(model, 0.8)
    whole = px.score(model, x, criterion=criterion, masks=masks)
    for data in (list(x.split(1)), torch.cat([x, x]), [x[:3], x[3:]]):
        for name, score in px.score(model, data, criterion=criterion, masks=masks).items():
            close(score, whole[name], REORDERED, name)


def test_products_without_a_softmax_are_refused():
    class LinearAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            q = self.q(x)
            return (q @ q.mT) @ self.v(x)

    with pytest.raises((TypeError, ValueError), match="cannot tell which factor"):
        px.score(LinearAttention(), random_batch((TOKENS, WIDTH), 2))
