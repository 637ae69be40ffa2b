"""Bad input of score(): data, models, masks, options."""

from __future__ import annotations

import math
import re

import nets
import pytest
import torch
from torch import nn

import pxfast
from pxfast.errors import DataError, MaskError, NoRuleError, PxfastError, RangeError


class NoInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(torch.ones(x.shape[0], 4))


class Exotic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cumprod(self.layer(x), 1)


def test_bad_data():
    model = nets.mlp()
    with pytest.raises(DataError, match="no batches"):
        pxfast.score(model, [])
    with pytest.raises(DataError, match="is empty"):
        pxfast.score(model, torch.zeros(0, 4))
    with pytest.raises(DataError, match="no floating-point tensor"):
        pxfast.score(model, torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(DataError, match="expected a tensor"):
        pxfast.score(model, 3)
    with pytest.raises(DataError, match=r"batch 1 \(inputs of shape \[1, 7\]\)"):
        pxfast.score(model, torch.randn(2, 7), masks=nets.random_masks(model, 0.5))
    bad = torch.randn(2, 4)
    bad[1, 2] = math.nan
    said = (
        "data: batch 2 holds NaN or infinity in input 0: 1 of 8 entries, the first of them nan at "
        "[1, 2] (sample 1), counted from 0. Mend"
    )
    with pytest.raises(DataError, match=re.escape(said)):
        pxfast.score(model, [torch.randn(2, 4), bad], masks=nets.random_masks(model, 0.5))


def test_bad_models():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got str"):
        pxfast.score("model", torch.randn(2, 4))
    with pytest.raises(PxfastError, match="no prunable weights"):
        pxfast.score(nn.Sequential(nn.ReLU()), torch.randn(2, 4).abs())
    model = nets.mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
    with pytest.raises(PxfastError, match=r"2\.weight holds NaN or infinity"):
        pxfast.score(model, torch.randn(2, 4))
    with pytest.raises(DataError, match="does not depend on its input"):
        pxfast.score(NoInput(), torch.randn(2, 4))
    with pytest.raises(NoRuleError, match=r"cumprod.*Exotic[\s\S]*@pxfast\.rule\(torch\.cumprod"):
        pxfast.score(Exotic(), torch.randn(2, 4))
    with pytest.raises(DataError, match="expected the samples first"):
        pxfast.score(nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), torch.randn(2, 4))


def test_buffers_may_hold_infinity():
    """Masks and bounds do; a norm's statistic may not, and none may hold NaN."""
    model, x = nets.conv(), torch.randn(2, 1, 5, 5)
    expected = pxfast.score(model, x)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    assert pxfast.score(model, x) == expected
    model.register_buffer("mask", torch.tensor([0.0, math.nan]))
    with pytest.raises(PxfastError, match="mask holds NaN"):
        pxfast.score(model, x)
    norm = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    norm[1].running_mean[0] = math.inf
    with pytest.raises(PxfastError, match=r"1\.running_mean holds NaN or infinity"):
        pxfast.score(norm, x)


def test_bad_masks():
    model, x = nets.mlp(), torch.randn(2, 4)
    with pytest.raises(MaskError, match=r"'layer' is not a weight of the model.*0\.weight"):
        pxfast.score(model, x, masks={"layer": torch.ones(2)})
    with pytest.raises(MaskError, match=r"0\.weight must have the weight's shape \[5, 4\], got"):
        pxfast.score(model, x, masks={"0.weight": torch.ones(4, 5)})
    with pytest.raises(MaskError, match=r"expected a mapping of weight names.*got Tensor"):
        pxfast.score(model, x, masks=torch.ones(5, 4))
    with pytest.raises(MaskError, match=r"its weights are named like 2\.weight"):
        pxfast.score(model, x, masks={"2.wieght": torch.ones(4, 5)})
    with pytest.raises(MaskError, match="other than 0 and 1"):
        pxfast.score(model, x, masks={"0.weight": torch.full((5, 4), 0.5)})
    with pytest.raises(RangeError, match=r"no path reaches the output.*2\.weight"):
        pxfast.score(model, x, masks={"2.weight": torch.zeros(4, 5)})


class TwoMasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        mask = torch.eye(4)
        x = nn.functional.linear(x, self.layer.weight * mask)
        return nn.functional.linear(x, self.layer.weight * (1 - mask))


def test_a_weight_under_two_masks_is_refused():
    with pytest.raises(MaskError, match=r"layer\.weight is used under two different masks"):
        pxfast.score(TwoMasks(), torch.randn(2, 4))


def test_bad_options():
    model, x = nets.mlp(), torch.randn(2, 4)
    for options, message in [
        ({"criterion": "magic"}, "criterion: expected one of px, px-joint"),
        ({"batchnorm": "both"}, 'batchnorm: expected "running" or "data"'),
        ({"dtype": torch.float64}, "dtype: expected torch.bfloat16"),
        ({"max_memory": 0}, "max_memory: expected a positive number"),
        ({"max_memory": True}, "max_memory: expected a positive number.*True"),
        ({"include": 3}, "include: expected names, globs or modules, or a list of them, got 3"),
        ({"max_memory": "8GB"}, "max_memory: expected a positive number.*'8GB'"),
    ]:
        with pytest.raises(PxfastError, match=message):
            pxfast.score(model, x, **options)


class Named(nn.Module):
    """Takes its inputs by name; computes a loss if it is given targets to reach."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x=None, goal=None):
        out = self.layer(x)
        return out if goal is None else nn.functional.l1_loss(out, goal)


def test_what_the_model_alone_refuses_is_told_from_what_pxfast_cannot_follow():
    alone = r"Named could not be scored on batch 1 .*The model raises this without pxfast, too"
    for data, shapes in (
        (torch.randn(3, 5), r"shape \[1, 5\]"),
        ({"images": torch.randn(3, 4)}, r"shape images: \[1, 4\]"),
    ):
        with pytest.raises(DataError, match=alone) as caught:
            pxfast.score(Named(), data)
        assert re.search(shapes, str(caught.value))

    class Peeking(Named):
        def forward(self, x):
            if type(x) is not torch.Tensor:
                raise TypeError("only plain tensors.")
            return super().forward(x)

    with pytest.raises(DataError, match=r"only plain tensors\. The model alone runs on them"):
        pxfast.score(Peeking(), torch.randn(3, 4))


def test_losses_and_recurrent_layers_are_named_as_such():
    with pytest.raises(NoRuleError, match=r"is a loss.*Leave out of the batch"):
        pxfast.score(Named(), {"x": torch.randn(3, 4), "goal": torch.randn(3, 2)})
    with pytest.raises(NoRuleError, match=r"torch\.lstm has no rule .*Write its steps out"):
        pxfast.score(nn.LSTM(4, 2), torch.randn(2, 3, 4))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "it is a NoneType"),
        ((None, None), "it is a tuple of NoneType"),
        ({"loss": 3.0}, "it is a dict of float"),
        (torch.zeros(1, 2), "it is a Tensor"),
    ],
)
def test_a_result_without_a_path_is_described(result, said):
    class Returning(Named):
        def forward(self, x):
            super().forward(x)
            return result

    with pytest.raises(DataError, match=rf"does not depend on its input \({said}\)"):
        pxfast.score(Returning(), torch.randn(3, 4))


def test_a_class_is_no_criterion():
    with pytest.raises(TypeError, match=r"got the class SNIP: give SNIP\(\)"):
        pxfast.score(nets.mlp(), torch.randn(2, 4), criterion=pxfast.criteria.SNIP)
