"""Weights computed from parameters: θ is the tensor that reaches the operation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import random_batch, random_masks, seeded
from peculiar import Scaled, assert_same, net, plain, used_weight
from scored import CRITERIA
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import pxfast
from pxfast.errors import MaskError
from pxfast.reference import px


class Standardised(nn.Linear):
    """Weight standardisation with a learned gain, written in one of two orders."""

    def __init__(self, gain_first: bool) -> None:
        super().__init__(5, 6)
        self.gain, self.gain_first = nn.Parameter(torch.rand(6, 1)), gain_first

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, 1, keepdim=True)
        standard = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        weight = self.gain * standard if self.gain_first else standard * self.gain
        return F.linear(x, weight, self.bias)


class Batched(nn.Linear):
    """timm's way: a BatchNorm over the weights themselves."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, 6, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
        return F.linear(x, weight.reshape_as(self.weight), self.bias)


class Cosine(nn.Linear):
    """Rows of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class LowRank(nn.Linear):
    """A weight with a low-rank update."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.a, self.b = nn.Parameter(torch.rand(6, 2)), nn.Parameter(torch.rand(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.a @ self.b, self.bias)


def scaled() -> nn.Module:
    layer = nn.Linear(5, 6)
    parametrize.register_parametrization(layer, "weight", Scaled())
    return layer


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "parametrizations.weight_norm": lambda: parametrizations.weight_norm(nn.Linear(5, 6)),
    "parametrizations.spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(5, 6)),
    "parametrizations.orthogonal": lambda: parametrizations.orthogonal(nn.Linear(5, 6)),
    "orthogonal, cayley": lambda: parametrizations.orthogonal(
        nn.Linear(5, 6), orthogonal_map="cayley"
    ),
    "own parametrization": scaled,
    "hooks: weight_norm": lambda: nn.utils.weight_norm(nn.Linear(5, 6)),
    "hooks: weight_norm of everything": lambda: nn.utils.weight_norm(nn.Linear(5, 6), dim=None),
    "hooks: spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(5, 6)),
    "standardised": lambda: Standardised(gain_first=False),
    "standardised, gain first": lambda: Standardised(gain_first=True),
    "standardised by BatchNorm": lambda: Batched(5, 6),
    "cosine": lambda: Cosine(5, 6),
    "low rank": LowRank,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights(name, criterion):
    """θ is the tensor that reaches the operation; masks apply to it; nothing moves."""
    model = net(COMPUTED[name])
    before = copy.deepcopy(model.state_dict())
    x = random_batch((4,), 3).double()
    reference = plain(model, used_weight(model.inner))
    attributes = {id(m): dict(vars(m)) for m in model.modules()}
    for masks in (None, random_masks(reference, 0.6)):
        scores = pxfast.score(model, x, criterion=criterion, masks=masks)
        assert_same(scores, px.score(reference, x, criterion=criterion, masks=masks))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for module in model.modules():
        now = vars(module)
        assert now.keys() == attributes[id(module)].keys()
        for key, value in attributes[id(module)].items():
            assert not isinstance(value, Tensor) or now[key] is value, key


@pytest.mark.parametrize("criterion", CRITERIA)
def test_standardised_convolutions(criterion):
    class Standard(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    model = seeded(
        lambda: nn.Sequential(Standard(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), 0
    ).double()
    reference = copy.deepcopy(model)
    reference[0].__class__ = nn.Conv2d
    with torch.no_grad():
        weight = model[0].weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        reference[0].weight.copy_(weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5))
    x, masks = random_batch((2, 4, 4), 3).double(), random_masks(reference, 0.6)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert_same(scores, px.score(reference, x, criterion=criterion, masks=masks))


def test_masks_of_another_shape_are_refused_by_name():
    model = net(COMPUTED["standardised"])
    with pytest.raises(MaskError, match=r"inner\.weight must have the weight's shape \[6, 5\]"):
        pxfast.score(model, torch.randn(2, 4).double(), masks={"inner.weight": torch.ones(5, 6)})
