"""Masks that hold learned parts: biases and tables forbid nothing, however low they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attending import BAND, HEADS, TOKENS, WIDTH, Spelling, check_spelling, minus
from torch import Tensor, nn

sdpa = F.scaled_dot_product_attention
LOW = torch.linspace(-1, 1, HEADS * TOKENS * TOKENS).view(HEADS, TOKENS, TOKENS).double()
LOW[:, 2, 1:3] = -80.0
MASK = minus(BAND, 100)


class Biased(nn.Module):
    """Attention with a table of biases by head and position, and a buffer that masks."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.bias = nn.Parameter(LOW.clone())
        self.table = nn.Parameter(LOW.flatten(1).T.clone())  # [positions, H]
        self.register_buffer("index", torch.arange(TOKENS**2).view(TOKENS, TOKENS))
        self.register_buffer("mask", MASK.clone())

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.function(self, q, k, v)

    def gathered(self) -> Tensor:
        """The biases from the table, as Swin has them."""
        bias = self.table[self.index.view(-1)].view(TOKENS, TOKENS, -1)
        return bias.permute(2, 0, 1).contiguous().unsqueeze(0)


def eager(q: Tensor, k: Tensor, v: Tensor, *added: Tensor) -> Tensor:
    logits = q @ k.mT / math.sqrt(WIDTH)
    for tensor in added:
        logits = logits + tensor
    return logits.softmax(-1) @ v


LEARNED = {
    "a parameter": lambda own, q, k, v: sdpa(q, k, v, own.bias),
    "from a table": lambda own, q, k, v: sdpa(q, k, v, own.gathered()),
    "added to logits": lambda own, q, k, v: eager(q, k, v, own.gathered()),
    "of a sigmoid": lambda own, q, k, v: eager(q, k, v, (own.bias * 0.5).exp().log() * 2),
}
MIXED = {
    "bias + mask": lambda own, q, k, v: sdpa(q, k, v, own.bias + own.mask),
    "mask + table": lambda own, q, k, v: sdpa(q, k, v, own.mask[None] + own.gathered()),
    "by sample": lambda own, q, k, v: sdpa(
        q, k, v, own.gathered() + own.mask.view(1, 1, TOKENS, TOKENS).expand(len(q), HEADS, -1, -1)
    ),
    "cast and reshaped": lambda own, q, k, v: sdpa(
        q, k, v, (own.gathered() + own.mask).to(q.dtype).reshape(HEADS, TOKENS, TOKENS)[None]
    ),
    "both added to logits": lambda own, q, k, v: eager(q, k, v, own.bias, own.mask),
    "their sum added to logits": lambda own, q, k, v: eager(q, k, v, own.bias + own.mask),
    "in place": lambda own, q, k, v: sdpa(q, k, v, own.gathered().clone().add_(own.mask)),
}
FILLED = {
    "masked_fill": lambda own, q, k, v: sdpa(q, k, v, own.bias.masked_fill(~BAND, -math.inf)),
    "where": lambda own, q, k, v: eager(q, k, v, torch.where(BAND, own.bias, -1e9)),
}


def by_data(k: Tensor) -> Tensor:
    """A mask that is computed from the data: a gate, which is open in g."""
    closed = (k[..., 0] < 0).unsqueeze(-2)
    return torch.zeros_like(closed, dtype=k.dtype).masked_fill(closed, -60.0)


OF_DATA = {
    "sdpa": lambda q, k, v: sdpa(q, k, v, by_data(k)),
    "added": lambda q, k, v: eager(q, k, v, by_data(k)),
    "filled": lambda q, k, v: (
        (q @ k.mT / math.sqrt(WIDTH) - 60 * (k[..., 0] < 0).unsqueeze(-2)).softmax(-1) @ v
    ),
}
SPELLINGS = {
    **{f"of data, {name}": Spelling(f, of_data=by_data) for name, f in OF_DATA.items()},
    **{name: Spelling(Biased(function), LOW) for name, function in LEARNED.items()},
    **{name: Spelling(Biased(function), LOW + MASK, BAND) for name, function in MIXED.items()},
    **{name: Spelling(Biased(function), LOW, BAND) for name, function in FILLED.items()},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_scores(name):
    check_spelling(SPELLINGS[name])
