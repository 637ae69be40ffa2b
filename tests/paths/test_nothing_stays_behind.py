"""What a score has held is gone with it, without waiting for the garbage collector: in a large
model, scores and activations of the round before would stay beside those of the next."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from attending import TOKENS, attending
from nets import random_batch, random_masks

import pxfast
from pxfast.paths.passes import Passes
from pxfast.paths.select import compact


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_no_cycle_holds_scores_or_passes(criterion, monkeypatch):
    model, x = attending(F.scaled_dot_product_attention), random_batch((TOKENS, 3), 2).double()
    passes = []
    settle = Passes._settle
    monkeypatch.setattr(
        Passes, "_settle", lambda self: passes.append(weakref.ref(self)) or settle(self)
    )
    gc.collect()
    gc.disable()
    try:
        scores = pxfast.score(model, x, criterion=criterion, masks=random_masks(model, 0.6))
        score = weakref.ref(scores["stem.weight"])
        del scores
        assert score() is None
        assert passes and passes[0]() is None
    finally:
        gc.enable()


def test_flags_are_held_once_along_constant_dimensions():
    rows = torch.tensor([True, False, True])[:, None].expand(3, 4).clone()
    single = rows.clone()
    single[1, 2] = True
    for flags, held in ((rows, 3), (rows.T, 3), (torch.ones(2, 3, 2, 2).bool(), 1), (single, 12)):
        small = compact(flags)
        assert torch.equal(small, flags)
        assert small.untyped_storage().nbytes() == held
