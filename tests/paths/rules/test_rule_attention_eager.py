"""Attention written out by models: products, masks, softmax; against the sums written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from attending import (
    BAND,
    BIAS,
    BY_HEAD,
    CAUSAL,
    TOKENS,
    WIDTH,
    Spelling,
    attending,
    case,
    check_spelling,
    minus,
    totals,
    written_out,
)
from middles import data_pass_forced
from nets import random_batch
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.errors import NoRuleError

sdpa = F.scaled_dot_product_attention
SCALE = 1 / math.sqrt(WIDTH)
WEIGHTS = torch.tensor([[0.5, -2.0], [1.5, 0.25]]).double()


def usual(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (q * SCALE) @ k.transpose(-2, -1)
    return F.dropout(attn.softmax(dim=-1), 0.5, False) @ v


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(-1, TOKENS, WIDTH) for x in (q, k, v))
    logits = torch.baddbmm(torch.zeros(1).to(q), q, k.mT, beta=0, alpha=SCALE)
    return torch.bmm(torch.softmax(logits, -1), v).view(-1, 2, TOKENS, WIDTH)


def by_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    logits = minus(BAND, math.inf).to(q)[None].baddbmm(q, k.mT, alpha=SCALE)
    return logits.softmax(-1).bmm(v).unflatten(0, (-1, 2))


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    logits = q.new_zeros(len(q), TOKENS, TOKENS).baddbmm_(q, k.mT, alpha=SCALE)
    return logits.softmax(-1).bmm(v).unflatten(0, (-1, 2))


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = torch.einsum("bhid,bhjd->bhij", q, k) * SCALE
    return torch.einsum("b h i j, b h j d -> b h i d", attn.softmax(-1), v)


def by_einsum_of_tokens(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attn = torch.einsum("...qhd,...khd->...hqk", (q, k)) / WIDTH**0.5
    return torch.einsum("bhqk,bkhd->bqhd", [attn.softmax(-1), v]).transpose(1, 2)


def columns(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The transposed product: keys in rows, softmax over them, values on the left."""
    attn = torch.matmul(k, q.mT).mul(SCALE).softmax(dim=-2)
    return torch.matmul(v.mT, attn).mT


def filled(fill: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.matmul(q, k.mT).div(math.sqrt(WIDTH)).masked_fill(~BAND, fill)
    return torch.matmul(F.softmax(logits, dim=-1), v)


def filled_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.mT
    logits /= math.sqrt(WIDTH)
    logits.masked_fill_(~BAND, torch.finfo(logits.dtype).min)
    logits += BIAS.to(logits)
    return logits.softmax(-1) @ v


def chosen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.where(BAND, q @ k.mT * SCALE, -1e9)
    logits = torch.where(~CAUSAL, torch.tensor(-1e9).to(logits), logits)
    return logits.softmax(-1) @ v


def windows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Swin's way to add a mask by window: here the sample is the window."""
    attn = (q * SCALE) @ k.mT
    attn = attn.view(1, len(q), 2, TOKENS, TOKENS) + minus(BY_HEAD, 100)[None].to(q)
    return attn.view(-1, 2, TOKENS, TOKENS).softmax(-1) @ v


def permuted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (q @ k.mT * SCALE).permute(0, 2, 3, 1) + minus(BY_HEAD, 100).permute(0, 2, 3, 1).to(q)
    return attn.permute(0, 3, 1, 2).contiguous().to(q.dtype).softmax(-1) @ v


def stable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.mT * SCALE
    logits = logits - logits.amax(-1, keepdim=True)
    return torch.clamp(logits, min=-5000, max=5000).softmax(-1) @ v


def mixed_after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (q @ k.mT * SCALE).softmax(-1)
    attn = F.linear(attn.permute(0, 2, 3, 1), WEIGHTS.to(q)).permute(0, 3, 1, 2)
    return attn @ v


def mix(attn: Tensor) -> Tensor:
    return torch.einsum("gh,nhij->ngij", WEIGHTS, attn)


def mixed_by_convolution(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (q @ k.mT * SCALE).softmax(-1)
    return F.conv2d(attn, WEIGHTS[:, :, None, None].to(q)) @ v


def with_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Probabilities of the data and of positions, normalised again (ConViT)."""
    attn = 0.25 * (q @ k.mT * SCALE).softmax(-1) + BIAS.to(q).softmax(-1) * 0.75
    attn /= attn.sum(dim=-1).unsqueeze(-1)
    return attn @ v


def in_places(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A bias added to some logits in place, others overwritten."""
    attn = q @ k.mT * SCALE
    attn[:, :, 1:, 1:] = attn[:, :, 1:, 1:] + BIAS[:, :, 1:, 1:].to(q)
    attn[:, :, 0, 3:] = -math.inf
    return attn.softmax(-1) @ v


def from_zeros(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask that is drawn in the forward, from a tensor like the input (torchvision's Swin)."""
    regions = q.new_zeros(TOKENS)
    regions[2:] = 1
    mask = regions.unsqueeze(0) - regions.unsqueeze(1)
    mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
    return (q @ k.mT * SCALE + mask).softmax(-1) @ v


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.exp(q @ k.mT * SCALE)
    return weights / weights.sum(-1, keepdim=True) @ v


def by_hand_stably(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = (q @ k.mT * SCALE).masked_fill(~BAND, -math.inf)
    weights = (logits - logits.max(dim=-1, keepdim=True).values.detach()).exp_()
    weights = weights / (weights.sum(-1)[..., None] + 1e-30)
    return F.dropout(weights, 0.5, False) @ v


def divided_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exponentials of keys in rows, values on the left, divided by the sum at the end."""
    weights = (k @ q.mT * SCALE + minus(BAND.mT, 1e4).to(q)).exp()
    return (v.mT @ weights / weights.sum(-2, keepdim=True)).mT


def masked_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT * SCALE).exp() * BAND.to(q)
    return (weights / weights.sum(-1, keepdim=True)) @ v


def by_logarithms(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.mT * SCALE + minus(CAUSAL, math.inf).to(q)
    return F.log_softmax(logits, -1).exp() @ v


def by_logsumexp(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = (q @ k.mT * SCALE).permute(0, 2, 3, 1)
    weights = (logits - logits.logsumexp(2, keepdim=True)).exp()
    return weights.permute(0, 3, 1, 2) @ v


REGIONS = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool()

POSITIONS = BIAS.softmax(-1)
PLACES = torch.ones(TOKENS, TOKENS).bool()
PLACES[0, 3:] = False

SPELLINGS = {
    "q k^T v": Spelling(usual),
    "bmm": Spelling(by_bmm),
    "baddbmm": Spelling(by_baddbmm, minus(BAND, math.inf), BAND),
    "baddbmm_": Spelling(in_place),
    "einsum": Spelling(by_einsum),
    "einsum of tokens": Spelling(by_einsum_of_tokens),
    "columns": Spelling(columns),
    "+ a mask": Spelling(
        lambda q, k, v: ((q @ k.mT) * SCALE + minus(BAND, 100).to(q)).softmax(-1) @ v,
        minus(BAND, 100), BAND,
    ),
    "- a mask": Spelling(
        lambda q, k, v: (q.matmul(k.mT) * SCALE - 100 * (~BAND).to(q)).softmax(-1).matmul(v),
        minus(BAND, 100), BAND,
    ),
    "+ two masks": Spelling(
        lambda q, k, v: (
            minus(CAUSAL, 1e9).to(q) + (q @ k.mT * SCALE + minus(BAND, 100).to(q))
        ).softmax(-1) @ v,
        minus(BAND, 100) + minus(CAUSAL, 1e9), BAND & CAUSAL,
    ),
    "+ a bias": Spelling(lambda q, k, v: (q @ k.mT * SCALE + BIAS.to(q)).softmax(-1) @ v, BIAS),
    "masked_fill": Spelling(lambda q, k, v: filled(-math.inf, q, k, v), allowed=BAND),
    "masked_fill, finite": Spelling(lambda q, k, v: filled(-1e4, q, k, v), allowed=BAND),
    "masked_fill_": Spelling(filled_in_place, BIAS, BAND),
    "where": Spelling(chosen, allowed=BAND & CAUSAL),
    "windows": Spelling(windows, minus(BY_HEAD, 100), BY_HEAD),
    "permuted": Spelling(permuted, minus(BY_HEAD, 100), BY_HEAD),
    "stable": Spelling(stable),
    "softmax by hand": Spelling(by_hand),
    "softmax by hand, stable": Spelling(by_hand_stably, allowed=BAND),
    "softmax by hand, divided last": Spelling(divided_last, allowed=BAND),
    "softmax by hand, masked last": Spelling(masked_last, allowed=BAND),
    "softmax by logarithms": Spelling(by_logarithms, allowed=CAUSAL),
    "softmax by logsumexp": Spelling(by_logsumexp),
    "mixed after the softmax": Spelling(mixed_after, mix=mix),
    "mixed by a convolution": Spelling(mixed_by_convolution, mix=mix),
    "mixed with positions": Spelling(with_positions, mix=lambda a: 0.25 * a + 0.75 * POSITIONS),
    "in places": Spelling(in_places, F.pad(BIAS[:, :, 1:, 1:], (1, 0, 1, 0)), PLACES),
    "a mask made in the forward": Spelling(from_zeros, minus(REGIONS, 100), REGIONS),
}  # fmt: skip
CASES = {name: case(spelling) for name, spelling in SPELLINGS.items()}


@pytest.mark.parametrize("name", SPELLINGS)
def test_scores(name):
    check_spelling(SPELLINGS[name])


NOT_ATTENTION = {
    "no softmax": (lambda q, k, v: q @ k.mT @ v, "cannot tell which factor"),
    "a norm of logits": (
        lambda q, k, v: (q @ k.mT).square() @ v,
        r"came out of torch.Tensor.square",
    ),
    "logits as values": (
        lambda q, k, v: (q @ k.mT)[..., :2] + v,
        r"matmul \(in .*\) makes a gate tensor",
    ),
    "probabilities as values": (
        lambda q, k, v: (q @ k.mT).softmax(-1)[..., :2] + v,
        "probabilities are added",
    ),
    "a residual": (
        lambda q, k, v: sdpa(q, k, v) + (q @ k.mT).softmax(-1)[..., :2],
        "probabilities are added",
    ),
    "a trilinear einsum": (
        lambda q, k, v: torch.einsum("nhic,nhjc,nhjd->nhid", q, k, v),
        "has no rule",
    ),
}


@pytest.mark.parametrize("name", NOT_ATTENTION)
def test_products_that_are_no_attention(name):
    function, message = NOT_ATTENTION[name]
    model = attending(function)
    with pytest.raises(NoRuleError, match=message):
        pxfast.score(model, random_batch((TOKENS, 3), 2).double())


class Talking(nn.Module):
    """Logits and probabilities, both mixed across heads by linear layers."""

    def __init__(self, mask: Tensor | None) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(2, 2), nn.Linear(2, 2)
        self.mask = mask

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attn = self.before((q @ k.mT * SCALE).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.mask is not None:
            attn = attn + self.mask
        attn = self.after(attn.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return attn @ v


@pytest.mark.parametrize("allowed", [None, BAND])
@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_talking_heads(criterion, allowed):
    model = attending(Talking(None if allowed is None else minus(allowed, math.inf)))
    before, after = model.attend.before, model.attend.after
    x = random_batch((TOKENS, 3), 3, 7).double()
    with data_pass_forced(), pytest.warns(UserWarning, match=r"never uses.*attend\.after\.weight"):
        scores = pxfast.score(model, x, criterion=criterion)
    squares = before.weight.detach() ** 2

    def logits(q: Tensor, k: Tensor) -> Tensor:
        return before((q @ k.mT * SCALE).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def mixed(a: Tensor) -> Tensor:
        return after(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    by_head = squares.sum(0).view(1, 2, 1, 1)
    expected = written_out(model, logits, allowed, x, criterion, mix=mixed, by_head=by_head)
    for name, theirs in expected.items():
        close(scores[name], theirs, SMALL_NET[torch.float64], name)
    sums = totals(scores, model)
    close(scores["attend.before.weight"].sum(), sums["v"], SMALL_NET[torch.float64], "mix")
