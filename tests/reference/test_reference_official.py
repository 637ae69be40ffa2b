"""The official algorithm against the literal form where they agree, and its noise where not."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
import torch.nn.functional as F
from tolerances import REORDERED, close
from torch import nn
from torch.nn.utils import prune

from pxfast.reference import official, px

RELU = F.relu, F.leaky_relu
COMPARABLE = ["mlp", "conv", "residual", "concat", "depthwise"]


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class SmallResNet(nn.Module):
    """BatchNorm, residual blocks and global average pooling, with the names the code looks for."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))


def small_resnet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallResNet().eval()


@pytest.mark.parametrize("name", COMPARABLE)
def test_equals_the_paper_s_form_without_biases_and_norms(name):
    net = nets.NETS[name]
    model, x = net.build(seed=4, bias=False), nets.random_batch(net.shape, samples=4)
    data = [x[:1], (x[1:], "labels")]
    for masks in (None, nets.random_masks(model, 0.7, 4)):
        expected = px.evaluate(model, data, masks=masks)
        scores = official.score(model, data, masks, dtype=torch.float64)
        assert list(scores) == list(expected.scores)
        for weight, score in scores.items():
            close(score / expected.total, expected.scores[weight], REORDERED, weight)


def test_differs_where_it_is_said_to():
    for name in ("conv", "maxpool", "leaky", "batchnorm"):
        net = nets.NETS[name]
        model, x = net.build(seed=1), nets.random_batch(net.shape)
        expected = px.score(model, x)
        scores = official.score(model, x, dtype=torch.float64)
        shares = [score / score.sum() for score in scores.values()]
        paper = [score / score.sum() for score in expected.values()]
        assert not all(torch.allclose(a, b) for a, b in zip(shares, paper, strict=True)), name


def test_names_with_fc_are_left_as_they_are():
    """Two layers u x then w: R = Σ h g, ∂R/∂(u²) from a g whose second layer holds w, not w²."""
    model = nn.Sequential()
    model.add_module("first", nn.Linear(1, 1, bias=False))
    model.add_module("fc", nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model.first.weight.fill_(2.0)
        model.fc.weight.fill_(-3.0)
    scores = official.score(model, torch.tensor([[5.0]]))
    # h = 1 · (−3) · 25, g = 4 · (−3): |∂(h g)/∂(u²)| u² = 75 · 3 · 4, |∂(h g)/∂w| w² = 75 · 4 · 9
    assert scores["first.weight"].item() == 75 * 3 * 4
    assert scores["fc.weight"].item() == 75 * 4 * 9


def test_masked_weights_score_zero():
    model, x = nets.conv(2), nets.random_batch((1, 5, 5))
    masks = nets.random_masks(model, 0.6, 2)
    expected = official.score(model, x, masks)
    pruned = copy.deepcopy(model)
    for name, mask in masks.items():
        prune.custom_from_mask(pruned.get_submodule(name.removesuffix(".weight")), "weight", mask)
    pruned(x)
    for name, score in official.score(pruned, x).items():
        assert torch.equal(score, expected[name])
        assert (score[~masks[name]] == 0).all()
        assert (score[masks[name]] > 0).any()


def test_scores_of_batchnorm_networks_are_rounding_noise():
    model, x = small_resnet(), torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = official.noise(model, x)
    features = [layer for name, layer in noise["layers"].items() if name != "fc.weight"]
    assert len(features) == 5
    for layer in features:  # within two orders of magnitude of the epsilons' ratio
        assert 1e-2 < layer["ratio"] / noise["epsilon_ratio"] < 1e2
        assert layer["rank_correlation"] < 0.95
    assert noise["ratio"] < 1e-6


def test_scores_without_batchnorm_are_not_noise():
    noise = official.noise(nets.conv(0), nets.random_batch((1, 5, 5)))
    assert noise["ratio"] == pytest.approx(1, rel=1e-4)
    assert noise["rank_correlation"] > 0.99


class Failing(nn.Module):
    def __init__(self, fails):
        super().__init__()
        self.layer, self.relu, self.fails = nn.Linear(2, 2), nn.ReLU(), fails

    def forward(self, x):
        x = self.relu(self.layer(x))
        if self.fails(self):
            raise ArithmeticError("forward")
        return x


@pytest.mark.parametrize(
    "fails",
    [
        lambda model: not model.training,  # the real network
        lambda model: model.training and not torch.is_grad_enabled(),  # h
        lambda model: model.training and torch.is_grad_enabled(),  # g
    ],
    ids=["real", "h", "g"],
)
def test_functions_are_restored_after_an_exception(fails):
    with pytest.raises(ArithmeticError):
        official.score(Failing(fails), torch.ones(1, 2))
    assert (F.relu, F.leaky_relu) == RELU


def test_functions_and_model_are_untouched():
    model, x = small_resnet(), torch.randn(4, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    official.score(model, x)
    assert (F.relu, F.leaky_relu) == RELU
    assert not model.training
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_frozen_parameters_are_scored_too():
    model, x = nets.conv(2), nets.random_batch((1, 5, 5))
    expected = official.score(model, x)
    scores = official.score(model.requires_grad_(False), x)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_three_forwards_and_a_backward_a_batch(monkeypatch):
    """What the docstring counts is what it does."""
    calls = []
    forward = SmallResNet.forward
    monkeypatch.setattr(
        SmallResNet,
        "forward",
        lambda self, x: (
            calls.append((self.training, torch.is_grad_enabled(), len(x))) or forward(self, x)
        ),
    )
    official.score(small_resnet(), list(torch.randn(6, 3, 8, 8).split(4)))
    assert calls == [
        (training, grad, size)
        for size in (4, 2)
        for training, grad in ((False, False), (True, False), (True, True))
    ]


def test_prune_follows_the_exponential_schedule():
    model, x = nets.conv(3, channels=4, bias=False), nets.random_batch((1, 5, 5))
    masks = official.prune(model, x, density=0.25, rounds=5)
    expected = nets.random_masks(model, 1.0)
    total = sum(mask.numel() for mask in masks.values())
    for r in range(1, 6):
        scores = official.score(model, x, expected)
        flat = torch.cat([score.flatten() for score in scores.values()])
        threshold = flat.sort().values[int((1 - 0.25 ** (r / 5)) * total) - 1]
        expected = {name: score > threshold for name, score in scores.items()}
    for name, mask in masks.items():
        assert torch.equal(mask, expected[name])
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == total - int(0.75 * total)


def test_prune_at_density_one_keeps_everything():
    masks = official.prune(nets.mlp(), nets.random_batch((4,)), density=1.0, rounds=2)
    assert all(mask.all() for mask in masks.values())


def test_masks_that_do_not_fit_are_errors():
    model, x = nets.mlp(), nets.random_batch((4,))
    with pytest.raises(ValueError, match=r"'9\.weight'.*no such layer"):
        official.score(model, x, {"9.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"expected \[5, 4\], got \[4, 5\]"):
        official.score(model, x, {"0.weight": torch.ones(4, 5)})
