"""Masks that come with the samples: every sample has a kernel network under its own mask."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attending import NAMES, TOKENS, WIDTH, Attending, attending, minus, written_out
from middles import data_pass_forced
from nets import random_batch, random_masks, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.errors import DataError

CRITERIA = ("px", "px-joint")
SAMPLES = 4
LENGTHS = (5, 2, 4, 2)
PRESENT = torch.tensor([[token < length for token in range(TOKENS)] for length in LENGTHS])
ALLOWED = PRESENT[:, None, None]
X = random_batch((TOKENS, 3), SAMPLES, 7).double()
SCALES = torch.linspace(0.5, 2, TOKENS).double()[:, None]  # tells the tokens of g apart


class Padded(nn.Module):
    """Attention over the tokens that are there."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.inner: Attending = attending(self.attend)
        self.spelling = spelling

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        present = self.present[:, None, None]
        if self.spelling == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, present)
        logits = q @ k.mT / math.sqrt(WIDTH)
        if self.spelling == "masked_fill":
            return logits.masked_fill(~present, -1e9).softmax(-1) @ v
        return (logits + (1 - present.to(q.dtype)) * -1e4).softmax(-1) @ v

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        self.present = present
        return self.inner(x * SCALES)


def padded(spelling: str) -> Padded:
    return Padded(spelling).double()


def same(scores: Any, expected: Any, prefix: str = "inner.") -> None:
    assert len(scores) == len(expected)
    for name in expected:
        close(scores[f"{prefix}{name}"], expected[name], SMALL_NET[torch.float64], name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("spelling", ["sdpa", "masked_fill", "integers"])
def test_scores_are_those_of_the_sums_written_out(spelling, criterion, masked):
    model = padded(spelling)
    masks = random_masks(model.inner, 0.6, 3) if masked else {}

    def logits(q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / math.sqrt(WIDTH)

    expected = written_out(model.inner, logits, ALLOWED, X, criterion, masks, scales=SCALES)
    present = PRESENT.long() if spelling == "integers" else PRESENT
    given = {f"inner.{name}": mask for name, mask in masks.items()}
    scores = pxfast.score(model, {"x": X, "present": present}, criterion=criterion, masks=given)
    same(scores, expected)
    assert scores.provenance["data_pass"] == "run"
    assert scores.provenance["samples"] == SAMPLES


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("options", [{}, {"max_memory": 60_000}])
def test_splits_and_order_of_the_samples_do_not_matter(criterion, options):
    model = padded("sdpa")
    whole = pxfast.score(model, {"x": X, "present": PRESENT}, criterion=criterion)
    order = [3, 1, 0, 2]
    for data in (
        [((X[order], PRESENT[order]),)],
        [((X[n : n + 1], PRESENT[n : n + 1]), 0) for n in order],
        [((X, PRESENT),), ((X, PRESENT),)],
    ):
        same(pxfast.score(model, data, criterion=criterion, **options), whole, "")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_mask_for_all_may_come_with_the_samples_or_be_fixed(criterion):
    model, present = padded("sdpa"), PRESENT[1]

    class Fixed(Padded):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, present[None])

    with data_pass_forced():
        expected = pxfast.score(Fixed("sdpa").double(), X, criterion=criterion)
    given = (X, present.expand(SAMPLES, -1))
    same(pxfast.score(model, (given, 0), criterion=criterion), expected, "")


def test_the_bound_is_a_sum_over_samples():
    model = padded("sdpa")
    bounds = [
        pxfast.ntk_trace_bound(model, {"x": X[n : n + 1], "present": PRESENT[n : n + 1]})
        for n in range(SAMPLES)
    ]
    whole = pxfast.ntk_trace_bound(model, {"x": X, "present": PRESENT})
    assert whole == pytest.approx(sum(bounds), rel=SMALL_NET[torch.float64])
    assert max(bounds) > 1.01 * min(bounds)


class Encoded(nn.Module):
    """torch's own encoder under a padding mask, and the mean over the tokens that are there."""

    def __init__(self, nested: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=not nested)
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = self.encoder(self.stem(x * SCALES[: x.shape[1]]), src_key_padding_mask=padding)
        there = (~padding).to(x.dtype)[..., None]
        return self.head((x * there).sum(1) / there.sum(1))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_padded_tokens_change_nothing(criterion):
    """A short sample scores like itself without padding."""
    model = seeded(Encoded, 2).double()
    length = 3
    short = {"x": X[:1, :length], "padding": torch.zeros(1, length, dtype=torch.bool)}
    padding = torch.arange(TOKENS)[None] >= length
    expected = pxfast.score(model, short, criterion=criterion)
    scores = pxfast.score(model, {"x": X[:1], "padding": padding}, criterion=criterion)
    side = [name for name in expected if "in_proj" in name]
    assert len(side) == 2
    for name in expected.keys() - side:
        close(scores[name], expected[name], SMALL_NET[torch.float64], name)
    for name in side:  # queries of padding count in ℓ, though nothing reads what they attend to
        close(scores[name][16:], expected[name][16:], SMALL_NET[torch.float64], name)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_that_would_drop_padded_tokens(training, criterion):
    """nn.TransformerEncoder does as it comes: the scores are those of one that keeps them."""
    model = seeded(lambda: Encoded(nested=True), 2).double().train(training)
    data = {"x": X, "padding": ~PRESENT}
    scores = pxfast.score(model, data, criterion=criterion)
    model.encoder.use_nested_tensor = False
    same(scores, pxfast.score(model, data, criterion=criterion), "")


def test_masks_that_only_some_batches_bring_are_an_error():
    class Maybe(Padded):
        def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
            all_there = torch.ones(len(x), TOKENS, dtype=torch.bool)
            return super().forward(x, all_there if present is None else present)

    model = Maybe("sdpa").double()
    data = [{"x": X}, {"x": X, "present": PRESENT}]
    with data_pass_forced(), pytest.raises(DataError, match="batch 2 holds a tensor of integers"):
        pxfast.score(model, data)


def test_float_masks_are_data():
    """A gate, open in the kernel network: as if it forbade nothing there."""
    model = attending(lambda q, k, v: (q @ k.mT / math.sqrt(WIDTH) + added).softmax(-1) @ v)
    added = minus(ALLOWED, 60.0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            nonlocal added
            added = mask
            return self.inner(x * SCALES)

    def logits(q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / math.sqrt(WIDTH) + minus(ALLOWED, 60.0)

    expected = written_out(model, logits, None, X, "px", scales=SCALES)
    with data_pass_forced():
        same(pxfast.score(Outer(), ((X, minus(ALLOWED, 60.0)), 0)), expected)
    assert set(NAMES) == set(expected)


def test_a_mask_for_all_that_looks_like_one_of_samples_is_no_silent_change():
    """The last batch has as many samples as the mask's first dimension."""
    model = padded("sdpa")
    shared = torch.ones(1, TOKENS, dtype=torch.bool)
    data = [{"x": X, "present": shared}, {"x": X[:1], "present": shared}]
    said = "What is the same for all samples belongs in a buffer"
    with data_pass_forced(), pytest.raises(DataError, match=said):
        pxfast.score(model, data)
