"""Attention written out: the scores of a small network around it, from SPEC's sums over tokens.

`Attending` is a network with attention between its layers, in any spelling: a function of q, k and
v [N, H, T, C]. `written_out` computes its scores without the engine, in float64: A from the logits
that a spelling stands for, the path sums of h, g and J entry by entry, the side branch by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from middles import Case, data_pass_forced
from nets import random_batch, random_masks, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
HEADS, TOKENS, WIDTH = 2, 5, 2
CAUSAL = torch.ones(TOKENS, TOKENS).tril().bool()
BAND = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 1, 0],
                     [1, 1, 1, 1, 1]]).bool()  # fmt: skip
BY_HEAD = torch.stack([BAND, CAUSAL])[None]
BIAS = torch.linspace(-2, 2, HEADS * TOKENS * TOKENS).view(1, HEADS, TOKENS, TOKENS).double()


class Attending(nn.Module):
    """x [N, T, 3] → stem → x + proj(attention(qkv(x))) → head, [N, T, 2]."""

    def __init__(self, attend: Attend, heads: tuple[int, int] = (HEADS, HEADS)) -> None:
        super().__init__()
        queries, keys = heads
        self.heads, self.attend = heads, attend
        self.stem = nn.Linear(3, queries * WIDTH)
        self.qkv = nn.Linear(queries * WIDTH, (queries + 2 * keys) * WIDTH)
        self.proj = nn.Linear(queries * WIDTH, queries * WIDTH)
        self.head = nn.Linear(queries * WIDTH, 2)

    def split(self, packed: Tensor) -> list[Tensor]:
        """q, k and v [N, H, T, C] of [N, T, (Hq + 2 Hk) C]."""
        queries, keys = (heads * WIDTH for heads in self.heads)
        parts = packed.split([queries, keys, keys], -1)
        return [part.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        attended = self.attend(*self.split(self.qkv(x)))
        return self.head(x + self.proj(attended.transpose(1, 2).flatten(2)))


def attending(attend: Attend, heads: tuple[int, int] = (HEADS, HEADS)) -> Attending:
    """The network in float64; the same weights for every spelling."""
    model = seeded(lambda: Attending(attend, heads), 5).double()
    assert isinstance(model, Attending)
    return model


NAMES = ("stem.weight", "qkv.weight", "proj.weight", "head.weight")


def written_out(
    model: Attending,
    logits: Callable[[Tensor, Tensor], Tensor],
    allowed: Tensor | None,
    x: Tensor,
    criterion: str,
    masks: Mapping[str, Tensor] | None = None,
    mix: Callable[[Tensor], Tensor] = lambda a: a,
    by_head: Tensor | float = 1.0,
    scales: Tensor | float = 1.0,
) -> dict[str, Tensor]:
    """S/R of the four layers.

    Args:
        model: the network.
        logits: of q and k [N, H, T, C]; what attention takes the softmax of.
        allowed: bool, broadcastable to [N, H, T, T]; None: every token. With an entry for every
            sample, each has a kernel network of its own.
        x: [N, T, 3].
        criterion: "px" or "px-joint".
        masks: of the weights.
        mix: what becomes of A after the softmax.
        by_head: how much a head counts in ℓ, broadcastable to [N, H, T, T].
        scales: constants that multiply the input, broadcastable to [N, T, 3]; in g they tell the
            tokens apart.
    """
    mask = {name: (masks or {}).get(name, torch.ones(())).double() for name in NAMES}
    theta = {name: model.get_parameter(name).detach() * mask[name] for name in NAMES}
    squares = {name: (theta[name] ** 2).requires_grad_() for name in NAMES}
    ones = {name: mask[name].expand_as(theta[name]) for name in NAMES}
    group = model.heads[0] // model.heads[1]

    def grouped(packed: Tensor) -> list[Tensor]:
        q, k, v = model.split(packed)
        return [q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)]

    with torch.no_grad():
        inner = (x * scales) @ theta["stem.weight"].mT + model.stem.bias
        q, k, _ = grouped(inner @ theta["qkv.weight"].mT + model.qkv.bias)
        weights = logits(q, k).exp()
        if allowed is not None:
            weights = weights * allowed
        gate = mix(weights / weights.sum(-1, keepdim=True)) ** 2
        open_ = torch.ones(1, 1, TOKENS, TOKENS).double() * (1.0 if allowed is None else allowed)

    def through(weights: Mapping[str, Tensor], x: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
        """The output's path sums, those behind the gate, and ℓ with the entering ones constant."""
        inner = x @ weights["stem.weight"].mT
        _, _, v = grouped(inner @ weights["qkv.weight"].mT)
        behind = torch.einsum("nhij,nhjc->nhic", gate.expand(len(x), v.shape[1], -1, -1), v)
        attended = behind.transpose(1, 2).flatten(2) @ weights["proj.weight"].mT
        q, k, _ = grouped(inner.detach() @ weights["qkv.weight"].mT)
        pairs = torch.einsum("nhic,nhjc->nhij", q, k) * open_ * by_head
        return (inner + attended) @ weights["head.weight"].mT, behind, pairs.sum()

    if criterion == "px":
        s = through(ones, x**2, gate)[0].detach()
        s = s if len(open_) > 1 else s.sum(0)
        mean = open_ / open_.sum(-1, keepdim=True).clamp(min=1)
        g, behind, ell = through(squares, torch.ones_like(x[: len(open_)]) * scales**2, mean)
        total = (s * g).sum()
    else:
        out, behind, ell = through(squares, (x * scales) ** 2, gate)
        total = out.sum()
    *main, cotangent = torch.autograd.grad(total, [*squares.values(), behind], retain_graph=True)
    side = torch.autograd.grad(ell, squares["qkv.weight"])[0]
    mass = (cotangent * behind).sum()
    scores = {name: squares[name] * slope for name, slope in zip(NAMES, main, strict=True)}
    first = sum(model.heads) * WIDTH  # rows of queries and keys
    scores["qkv.weight"][:first] += (squares["qkv.weight"] * side)[:first] * mass / ell
    return {name: (score / total).detach() for name, score in scores.items()}


def totals(scores: Mapping[str, Tensor], model: Attending) -> dict[str, Any]:
    """What the projections of q, k and v total."""
    queries, keys = (heads * WIDTH for heads in model.heads)
    q, k, v = scores["qkv.weight"].split([queries, keys, keys])
    return {"q": q.sum(), "k": k.sum(), "v": v.sum()}


class Spelling(NamedTuple):
    """Attention as a model may write it, and what it stands for."""

    attend: Attend
    bias: Any = 0.0  # added to the logits
    allowed: Tensor | None = None
    scale: float = 1 / math.sqrt(WIDTH)
    heads: tuple[int, int] = (HEADS, HEADS)
    mix: Callable[[Tensor], Tensor] = lambda a: a
    of_data: Callable[[Tensor], Any] = lambda k: 0.0  # added to the logits, computed from k


def minus(allowed: Tensor, far: float) -> Tensor:
    """A mask to add: 0 where it allows, -far elsewhere."""
    return torch.zeros(allowed.shape).double().masked_fill(~allowed, -far)


class Packed(nn.Module):
    """Attention on the channels of [N, 3·H·C, T]."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        heads = self.spelling.heads
        parts = x.split([heads[0] * WIDTH, heads[1] * WIDTH, heads[1] * WIDTH], 1)
        return self.spelling.attend(*(p.unflatten(1, (-1, WIDTH)).mT for p in parts))


def case(spelling: Spelling) -> Case:
    return Case(lambda: Packed(spelling), ((spelling.heads[0] + 2 * spelling.heads[1]) * WIDTH, 5))


def check_spelling(spelling: Spelling) -> None:
    """Scores of all layers, for both criteria, without masks and under random ones."""
    model = attending(spelling.attend, spelling.heads)
    x = random_batch((TOKENS, 3), 3, 7).double()

    def logits(q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT * spelling.scale + spelling.bias + spelling.of_data(k)

    for criterion in ("px", "px-joint"):
        for masks in (None, random_masks(model, 0.6, 3)):
            expected = written_out(
                model, logits, spelling.allowed, x, criterion, masks, spelling.mix
            )
            what = f"{criterion}, {'no' if masks is None else 'random'} masks"
            with data_pass_forced():
                scores = pxfast.score(model, x, criterion=criterion, masks=masks)
            for name, theirs in expected.items():
                close(scores[name], theirs, SMALL_NET[torch.float64], f"{what}: {name}")
            sums = totals(scores, model)
            for part in "qk":
                close(sums[part], sums["v"], SMALL_NET[torch.float64], f"{what}: total of {part}")
