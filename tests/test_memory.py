"""max_memory: passes stay below it, say so where they cannot, and give the same scores."""

from __future__ import annotations

import contextlib
import gc
import sys
from itertools import pairwise

import nets
import pytest
import torch
from tolerances import DEEP_NET, close
from torch import Tensor, nn

import pxfast
from bench._harness import Work, peak_memory
from pxfast.errors import PxfastError
from pxfast.paths.memory import PLANNED, Budget, Held
from pxfast.paths.tensor import PathTensor

F64 = torch.float64


class Transformer(nn.Module):
    """Patches of an image and a class token through four blocks."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        blocks = [
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True)
            for _ in range(4)
        ]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


def convolutions() -> nn.Module:
    widths, layers = (3, 32, 32, 64, 64), []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


MODELS = {"convolutions": convolutions, "transformer": Transformer}
SOME_FIT = {"convolutions": 25 * 2**20, "transformer": 18 * 2**20}  # of the samples below


def scoring(model: str, images: int, max_memory: int | None, small: bool = False) -> Work:
    torch.manual_seed(0)
    made = MODELS[model]().eval()
    x = torch.randn(2 if small else images, 3, 64, 64)
    return lambda: pxfast.score(made, x, criterion="px-joint", max_memory=max_memory)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("model", "images"), [("convolutions", 24), ("transformer", 64)])
def test_px_joint_stays_below_its_limit(model, images):
    limit = 60
    free, held = (
        peak_memory(scoring, model=model, images=images, max_memory=given)
        for given in (None, limit * 2**20)
    )
    assert held < limit < 0.6 * free


@pytest.mark.parametrize("model", MODELS)
def test_what_is_counted_stays_below_what_is_planned_with(model, monkeypatch):
    """Scores, which the first sample leaves behind, are no part of what it took."""
    peaks = {}
    part = Budget.part

    @contextlib.contextmanager
    def noted(self, samples, **how):
        with part(self, samples, **how):
            yield
        peaks[samples] = self.held.peak

    monkeypatch.setattr(Budget, "part", noted)
    limit = 4 * SOME_FIT[model]
    scoring(model, 40, limit)()
    assert 1 < max(peaks) < 40
    assert max(peaks.values()) <= PLANNED * limit


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("model", MODELS)
def test_parts_that_fit_give_the_same_scores(model, criterion, monkeypatch):
    torch.manual_seed(0)
    made, x = MODELS[model]().eval().double(), torch.randn(20, 3, 32, 32, dtype=F64)
    masks = nets.random_masks(made, 0.7)
    whole = pxfast.score(made, x, criterion=criterion, masks=masks)
    sizes = []
    part = Budget.part

    def noted(self, samples, **how):
        sizes.append(samples)
        return part(self, samples, **how)

    monkeypatch.setattr(Budget, "part", noted)
    parts = pxfast.score(made, x, criterion=criterion, masks=masks, max_memory=SOME_FIT[model])
    assert sizes[0] == 1 and 1 < max(sizes) < 19
    assert list(parts) == list(whole)
    for name, score in whole.items():
        close(parts[name], score, DEEP_NET[F64], name)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_one_sample_that_does_not_fit_is_an_error(criterion):
    model, x = Transformer().eval(), torch.randn(3, 3, 64, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PxfastError, match="max_memory: one sample takes more"):
        pxfast.score(model, x, criterion=criterion, max_memory=100_000)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_samples_that_meet_and_do_not_fit_are_an_error():
    model = convolutions()
    arguments = {"criterion": "px-joint", "batchnorm": "data"}
    x = torch.randn(4, 3, 16, 16)
    with pytest.raises(PxfastError, match="max_memory: a batch of 4 samples that meet"):
        pxfast.score(model, x, max_memory=10**6, **arguments)
    pxfast.score(model, x, max_memory=10**8, **arguments)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_nothing_of_a_pass_waits_for_the_garbage_collector(criterion):
    """Frames that refer to themselves would keep every tensor of the pass."""
    model, x = Transformer(8).eval(), torch.randn(2, 3, 16, 16)
    masks = nets.random_masks(model, 0.7)
    gc.collect()
    gc.disable()
    try:
        pxfast.score(model, x, criterion=criterion, masks=masks)
        assert not any(type(thing) is PathTensor for thing in gc.get_objects())
    finally:
        gc.enable()


def test_what_is_held_is_counted_until_it_is_freed():
    outside, held = torch.zeros(100), Held()
    with held:
        made = outside + 1
        view, changed = made[3:], outside.add_(1)
        assert held.bytes == 400
        squared = view.square()
        assert held.bytes == held.peak == 400 + 4 * 97
        del made, changed
        assert held.bytes == 400 + 4 * 97  # a view holds it all
    del view
    assert held.bytes == 4 * 97
    assert squared.sum() > 0 and held.bytes == 4 * 97  # not active any more
