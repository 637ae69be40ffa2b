"""Depth: path sums that leave float32's range, and float64's, many times over.

There is no reference in range: float32 is compared with float64 under shared exponents, whose own
correctness the small networks show.
"""

from __future__ import annotations

import nets
import pytest
import torch
from libraries import library
from tolerances import DEEP_ARCHITECTURE, close
from torch import nn

import pxfast

CRITERIA = ("px", "px-joint")


def plain(layers: int = 200, channels: int = 8) -> nn.Module:
    """Convolutions and ReLUs, one after the other, whose gain is far from 1."""

    def build() -> nn.Module:
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
        for _ in range(layers - 2):
            blocks += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels * 64, 5))

    return nets.seeded(build, 0)


def crossing_masks(model: nn.Module, density: float) -> dict[str, torch.Tensor]:
    """Random masks that leave paths: the centre of the first unit of every layer is kept."""
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for name in nets.prunable_names(model):
        mask = torch.rand(model.get_parameter(name).shape, generator=generator) < density
        mask[(0, 0, *(size // 2 for size in mask.shape[2:]))] = True
        masks[name] = mask
    return masks


def assert_as_in_float64(model, x, criterion, masks):
    scores = pxfast.score(model.float(), x.float(), criterion=criterion, masks=masks)
    expected = pxfast.score(model.double(), x.double(), criterion=criterion, masks=masks)
    assert list(scores) == list(expected)
    for name, score in scores.items():
        assert score.isfinite().all() and (score.any() or not expected[name].any()), name
        close(score, expected[name], DEEP_ARCHITECTURE, f"{criterion} {name}")
    return scores


def positive(model: nn.Module, gain: float) -> nn.Module:
    """Without a dead unit, which somewhere in 200 layers would end all paths."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().mul_(gain if parameter.dim() > 1 else 0)
    return model


@pytest.mark.parametrize("density", [1.0, 0.01])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_resnet152_at_full_size(criterion, density):
    models = library("torchvision").models
    width = 64 if criterion == "px" and density == 1 else 8
    model = nets.seeded(lambda: models.resnet152(num_classes=5, width_per_group=width), 0)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    masks = None if density == 1 else crossing_masks(model, density)
    scores = assert_as_in_float64(model, x, criterion, masks)
    assert all(score.any() for score in scores.values())


@pytest.mark.parametrize(
    ("criterion", "density", "gain", "log2"),
    [
        ("px", 1.0, 0.05, -2068),  # below the range of float64, where squares end at 2**-1074
        ("px", 1.0, 20.0, 1389),
        ("px", 0.01, 20.0, 42),
        ("px-joint", 1.0, 20.0, 1389),
        ("px-joint", 0.01, 20.0, 10),
    ],
)
def test_two_hundred_plain_layers(criterion, density, gain, log2):
    model = positive(plain(), gain)
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    masks = None if density == 1 else crossing_masks(model, density)
    scores = assert_as_in_float64(model, x, criterion, masks)
    assert all(score.any() for score in scores.values())
    assert abs(scores.provenance["log2_R"] - log2) < 1


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_deep_network_that_was_pruned(criterion):
    model = positive(plain(100), 0.75)
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    masks = pxfast.prune(model, x, density=0.05, rounds=3, criterion=criterion, progress=False)
    assert_as_in_float64(model, x, criterion, dict(masks))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_batches_of_very_different_scale_and_dense_outputs(criterion):
    model = positive(nn.Sequential(*list(plain(100))[:-2]), 0.75)  # [N, 8, 8, 8]
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 3, 8, 8, generator=generator) + 0.5 for _ in range(2))
    masks = nets.random_masks(model, 0.7)
    data = [one * 2.0**-40, other, one, other * 2.0**-30]
    double = [batch.double() for batch in data]
    scores = pxfast.score(model.float(), data, criterion=criterion, masks=masks)
    expected = pxfast.score(model.double(), double, criterion=criterion, masks=masks)
    main = pxfast.score(model.double(), double[1:3], criterion=criterion, masks=masks)
    for name, score in scores.items():
        close(score, expected[name], DEEP_ARCHITECTURE, name)
        close(score, main[name], DEEP_ARCHITECTURE, name)  # the faint batches drown


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_forward_that_ends_in_nan_is_refused(criterion):
    model = positive(nn.Sequential(*list(plain(100))[:-2]), 20.0)  # infinite, and 0·∞ in a mask
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    masks = nets.random_masks(model, 0.7)
    with pytest.raises(pxfast.errors.RangeError, match="model's own output holds NaN"):
        pxfast.score(model, x, criterion=criterion, masks=masks)
    pxfast.score(model.double(), x.double(), criterion=criterion, masks=masks)
