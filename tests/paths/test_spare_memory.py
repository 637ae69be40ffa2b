"""Scores lie where earlier ones lay, but never where somebody still holds any."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pxfast.paths.spare import Memory
from pxfast.scoring import Scorer


@pytest.mark.parametrize(
    ("hold", "free"),
    [
        (lambda scores: None, True),
        (lambda scores: scores, False),
        (lambda scores: scores[:2], False),
        (lambda scores: scores.detach(), False),
        (lambda scores: scores.numpy(), False),
        (lambda scores: torch.utils.dlpack.to_dlpack(scores), False),
    ],
    ids=["nobody", "tensor", "view", "detached", "numpy", "dlpack"],
)
def test_only_what_nobody_holds_is_free(hold: Callable[[Tensor], object], free: bool):
    memory, scores = Memory(), {"a": torch.zeros(4)}
    memory.lend(scores)
    held = hold(scores["a"])
    del scores
    assert (list(memory.free()) == ["a"]) is free
    assert memory.free() == {}
    del held


def model() -> nn.Sequential:
    """A small network with weights of several forms."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(6 * 4 * 4, 5))


def masks_of(network: nn.Module, density: float) -> dict[str, Tensor]:
    """Random masks of the weights of all layers."""
    return {
        name: torch.rand_like(weight) < density
        for name, weight in network.named_parameters()
        if weight.dim() > 1
    }


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_scores_in_used_memory_are_the_same(criterion: str):
    network, images = model(), torch.randn(4, 1, 8, 8)
    masks = masks_of(network, 0.6)
    expected = Scorer(network, images, criterion)(masks)
    scorer = Scorer(network, images, criterion, reuse=True)
    places = {score.data_ptr() for score in scorer().values()}
    again = scorer(masks)
    assert any(score.data_ptr() in places for score in again.values())
    for name, score in expected.items():
        assert torch.equal(score, again[name]), name


def test_scores_that_are_held_stay_as_they_are():
    network, images = model(), torch.randn(4, 1, 8, 8)
    scorer = Scorer(network, images, reuse=True)
    first = scorer(masks_of(network, 0.3))
    before = {name: score.clone() for name, score in first.items()}
    scorer(masks_of(network, 0.2))
    assert all(torch.equal(score, before[name]) for name, score in first.items())


def test_what_lies_on_no_path_is_looked_for_once(monkeypatch: pytest.MonkeyPatch):
    from pxfast.paths.passes import Passes

    network, images = model(), torch.randn(4, 1, 8, 8)
    masks = {"0.weight": torch.ones(6, 1, 3, 3, dtype=torch.bool)}
    masks["2.weight"] = torch.ones(6, 3, 3, 3, dtype=torch.bool)
    masks["2.weight"][:, 0] = False  # channels 0 and 3 lead nowhere, and
    masks["0.weight"][[1, 2, 4, 5]] = False  # are all that is left
    network = nn.Sequential(Beside(network[:3]), *network[3:])
    masks = {f"0.branch.{name}": mask for name, mask in masks.items()}
    calls: list[str] = []
    kernel = Passes.kernel

    def counted(self: Passes, *arguments: object) -> float:
        calls.append(self.weights.purpose)
        return kernel(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Passes, "kernel", counted)
    scorer = Scorer(network, images)
    scorer(masks)
    assert calls == ["scores", "existence"]
    scorer(masks)
    assert calls == ["scores", "existence", "scores"]
    with torch.no_grad():
        next(network.parameters()).mul_(2.0)
    scorer(masks)
    assert calls[3:] == ["scores", "existence"]


class Beside(nn.Module):
    """A branch, and a path around it."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch
        self.around = nn.Conv2d(1, 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.around(x)
