"""Which weights score() scores."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
from tolerances import DEEP_NET, SMALL_NET, close
from torch import nn

import pxfast
from pxfast.errors import PxfastError

F32, F64 = torch.float32, torch.float64


def test_include_and_exclude(resnet, images):
    every = pxfast.score(resnet, images)
    assert list(every) == nets.prunable_names(resnet)
    without = pxfast.score(resnet, images, exclude=["fc.weight", "layer1.*", resnet.conv1])
    left = [n for n in every if not n.startswith(("fc", "layer1", "conv1"))]
    assert list(without) == left
    for name in without:
        close(without[name], every[name], DEEP_NET[F32])
    only = pxfast.score(resnet, images, include=resnet.layer3)
    assert list(only) == [n for n in every if n.startswith("layer3")]
    with pytest.raises(PxfastError, match=r"exclude: 'layer9.\*' matches no weight"):
        pxfast.score(resnet, images, exclude="layer9.*")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


def test_tied_weights_have_one_score_that_adds_their_uses():
    model, x = Tied().double(), torch.randn(3, 4, dtype=F64)
    scores = pxfast.score(model, x)
    assert list(scores) == ["a.weight", "head.weight"]
    untied = copy.deepcopy(model)
    untied.b.weight = nn.Parameter(model.a.weight.detach().clone())
    separate = pxfast.score(untied, x)
    close(scores["a.weight"], separate["a.weight"] + separate["b.weight"], SMALL_NET[F64])


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.body(x))
        self.auxiliary(x)
        return self.head(x)


def test_weights_that_the_output_never_uses_are_named():
    with pytest.warns(UserWarning, match=r"auxiliary\.weight"):
        scores = pxfast.score(Auxiliary(), torch.randn(2, 4))
    assert list(scores) == ["body.weight", "head.weight"]
