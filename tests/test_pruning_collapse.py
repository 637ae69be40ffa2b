"""prune() and layers that become empty: branches are legal, a network without paths is not."""

from __future__ import annotations

import pytest
import torch
from magnitude import BATCH, Magnitude, net
from torch import nn

import pxfast
from pxfast.errors import RangeError


def test_an_empty_branch_is_reported_by_name_once():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(x + self.branch(x))

    model = Branch()
    with torch.no_grad():
        for weight in (model.stem.weight, model.branch.weight, model.head.weight):
            weight.abs_().add_(0.1)
        model.branch.weight.mul_(1e-3)
    with pytest.warns(UserWarning) as caught:
        masks = pxfast.prune(model, torch.rand(5, 4), density=0.5, rounds=5)
    assert not masks["branch.weight"].any()
    assert {warning.filename for warning in caught} == {__file__}
    reports = [str(w.message) for w in caught if "branch.weight" in str(w.message)]
    assert len(reports) == 1
    assert "left no weight in branch.weight. Other paths still lead" in reports[0]


def collapsing(rounds: int):
    return pxfast.prune(
        net(), [BATCH], density=0.5, rounds=rounds, criterion=Collapsing({"6.weight": 1e-9})
    )


class Collapsing(Magnitude):
    """Scores a chain: without weights in one layer there is no path."""

    def score(self, model, data, *, masks):
        scores = super().score(model, data, masks=masks)
        if not all(bool(score.any()) for score in scores.values()):
            raise RangeError("no path reaches the output")
        return scores


def test_layer_collapse_is_an_error_that_names_the_layer():
    with pytest.raises(
        RangeError, match=r"after round 1, .* no path reaches .* no weight is left in 6\.weight"
    ):
        collapsing(rounds=2)


def test_layer_collapse_in_the_last_round_is_a_warning():
    with pytest.warns(UserWarning, match=r"no weight is left in 6\.weight\. Ask for") as caught:
        masks = collapsing(rounds=1)
    assert caught[0].filename == __file__
    assert not masks["6.weight"].any()


def test_scores_that_are_all_zero_are_an_error():
    class Zero(Magnitude):
        def score(self, model, data, *, masks):
            scores = super().score(model, data, masks=masks)
            return {name: score * (not masks) for name, score in scores.items()}

    with pytest.raises(RangeError, match=r"after round 1, at density .* every score is 0"):
        pxfast.prune(net(), [BATCH], density=0.5, rounds=2, criterion=Zero())


def test_a_network_without_paths_from_the_start():
    model = net()
    nn.init.zeros_(model[4].weight)
    with pytest.raises(RangeError) as caught:
        pxfast.prune(model, BATCH, density=0.5, rounds=2)
    assert "after round" not in str(caught.value)
