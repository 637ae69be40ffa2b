"""Attention by torch's own function: masks, scales, grouped heads; against the sums written out."""

from __future__ import annotations

import math

import pytest
import torch.nn.functional as F
from attending import (
    BAND,
    BIAS,
    BY_HEAD,
    CAUSAL,
    HEADS,
    Spelling,
    case,
    check_spelling,
    minus,
)

sdpa = F.scaled_dot_product_attention
SPELLINGS = {
    "sdpa": Spelling(lambda q, k, v: sdpa(q, k, v)),
    "by keyword": Spelling(lambda q, k, v: sdpa(query=q, key=k, value=v, dropout_p=0.5)),
    "a scale": Spelling(lambda q, k, v: sdpa(q, k, v, scale=0.3), scale=0.3),
    "causal": Spelling(lambda q, k, v: sdpa(q, k, v, is_causal=True), allowed=CAUSAL),
    "a bool mask": Spelling(lambda q, k, v: sdpa(q, k, v, BAND), allowed=BAND),
    "a mask by head": Spelling(lambda q, k, v: sdpa(q, k, v, attn_mask=BY_HEAD), allowed=BY_HEAD),
    "a column of a mask": Spelling(
        lambda q, k, v: sdpa(q, k, v, CAUSAL[2][None]), allowed=CAUSAL[2][None]
    ),
    "minus infinity": Spelling(
        lambda q, k, v: sdpa(q, k, v, minus(BAND, math.inf).to(q)), allowed=BAND
    ),
    "minus 100": Spelling(
        lambda q, k, v: sdpa(q, k, v, minus(BAND, 100).to(q)), minus(BAND, 100), BAND
    ),
    "minus 50": Spelling(
        lambda q, k, v: sdpa(q, k, v, minus(BAND, 50).to(q)), minus(BAND, 50), BAND
    ),
    "minus 49": Spelling(lambda q, k, v: sdpa(q, k, v, minus(BAND, 49).to(q)), minus(BAND, 49)),
    "a shifted mask": Spelling(
        lambda q, k, v: sdpa(q, k, v, minus(BAND, 60).to(q) - 70), minus(BAND, 60), BAND
    ),
    "a fixed bias": Spelling(lambda q, k, v: sdpa(q, k, v, BIAS.to(q)), BIAS),
    "one key and value head": Spelling(
        lambda q, k, v: sdpa(q, k, v, enable_gqa=True), heads=(4, 1)
    ),
    "two key and value heads": Spelling(
        lambda q, k, v: sdpa(q, k, v, CAUSAL, enable_gqa=True), allowed=CAUSAL, heads=(4, 2)
    ),
    "broadcast heads": Spelling(lambda q, k, v: sdpa(q, k, v), heads=(4, 1)),
    "without a batch": Spelling(lambda q, k, v: sdpa(q.flatten(0, 1), k.flatten(0, 1),
                                                     v.flatten(0, 1)).unflatten(0, (-1, HEADS))),
}  # fmt: skip


CASES = {name: case(spelling) for name, spelling in SPELLINGS.items()}


@pytest.mark.parametrize("name", SPELLINGS)
def test_scores(name):
    check_spelling(SPELLINGS[name])
