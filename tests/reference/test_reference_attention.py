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
    for h, d, i, j, a, o in paths:
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
