"""Criteria leave the model, its gradients and all random generators as they were."""

from __future__ import annotations

import copy
import random
import warnings

import nets
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

import pxfast
from pxfast import criteria

OTHERS = [name for name in criteria.NAMES if name not in ("px", "px-joint")]


def batch(shape=(1, 4, 4), dtype=torch.float32):
    return nets.random_batch(shape, 6).to(dtype), torch.arange(6) % 3


class Counting(nn.Module):
    """Changes a buffer in place, and keeps what it saw, as careless modules do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.last = x
        return x + 0 * torch.rand(())


def lively():
    model = nets.batchnorm()
    model.append(Counting())
    model.train()
    model[0].eval()
    model[3].weight.requires_grad_(False)
    model[11].weight.grad = torch.ones_like(model[11].weight)
    model[2].register_forward_hook(lambda module, args, output: None)
    prune.custom_from_mask(model[8], "weight", torch.rand(model[8].weight.shape) < 0.8)
    parametrizations.weight_norm(model[11])
    return model


def snapshot(model):
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "momenta": [getattr(module, "momentum", None) for module in model.modules()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [{key: id(value) for key, value in vars(m).items()} for m in model.modules()],
        "parameters": {name: id(p) for name, p in model.named_parameters()},
        "buffers": {name: id(b) for name, b in model.named_buffers()},
        "rng": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),
    }


def assert_untouched(before, model):
    after = snapshot(model)
    torch.testing.assert_close(before.pop("state"), after.pop("state"), rtol=0, atol=0)
    for key, value in before.items():
        assert value == after[key], key


@pytest.mark.parametrize("name", OTHERS)
def test_the_model_is_untouched(name):
    model = lively()
    data = DataLoader(TensorDataset(*batch()), batch_size=3, shuffle=True)
    masks = {"0.weight": torch.rand(model[0].weight.shape) < 0.8}
    before = snapshot(model)
    pxfast.score(model, data, criterion=name, masks=masks)
    assert_untouched(before, model)


@pytest.mark.parametrize("name", ["snip", "grasp", "ntk-sap"])
def test_the_model_is_untouched_when_an_exception_passes(name):
    model = lively()
    x, y = batch()
    broken = x.clone()
    broken[0] = torch.nan
    before = snapshot(model)
    for bad in ((broken, y), (x[:, :, :2], y)):
        with pytest.raises(pxfast.errors.DataError, match="batch 2"):
            pxfast.score(model, [(x, y), bad], criterion=name)
        assert_untouched(dict(before), model)


def test_the_model_is_untouched_when_its_forward_is_interrupted():
    model = lively()
    calls = []

    def interrupt(module, args, output):
        calls.append(module)
        if len(calls) == 3:
            raise KeyboardInterrupt

    model[9].register_forward_hook(interrupt)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        pxfast.score(model, [batch()] * 3, criterion="ntk-sap")
    assert_untouched(before, model)


def test_no_copy_of_the_model_is_made(monkeypatch):
    def refuse(*_):
        raise AssertionError("deepcopy was called")

    model = nets.batchnorm()
    monkeypatch.setattr(copy, "deepcopy", refuse)
    for name in OTHERS:
        pxfast.score(model, batch(), criterion=name)


@pytest.mark.parametrize("name", OTHERS)
def test_the_callers_modes_do_not_matter(name):
    model = nets.batchnorm()
    data = batch()
    expected = pxfast.score(model, data, criterion=name)
    with torch.inference_mode():
        born_here = nets.batchnorm()
        inside = tuple(tensor.clone() for tensor in data)
        assert pxfast.score(born_here, inside, criterion=name) == expected
    with torch.no_grad(), torch.autocast("cpu"):
        assert pxfast.score(model, data, criterion=name) == expected
    torch.manual_seed(77)
    model.train()
    assert pxfast.score(nn.DataParallel(model), data, criterion=name) == expected


def test_a_half_precision_model_is_scored_in_float32():
    model = nets.batchnorm().to(torch.bfloat16)
    x, y = batch(dtype=torch.bfloat16)
    for name in OTHERS:
        scores = pxfast.score(model, (x, y), criterion=name)
        assert scores == pxfast.score(copy.deepcopy(model).float(), (x, y), criterion=name)
        assert all(score.dtype == torch.float32 for score in scores.values())


def test_a_scripted_model_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nets.mlp())
    for name in OTHERS:
        with pytest.raises(TypeError, match="scripted or traced"):
            pxfast.score(scripted, batch((4,)), criterion=name)


def test_weights_that_are_not_finite_are_named():
    model = nets.mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    for name in OTHERS:
        with pytest.raises(pxfast.errors.PxfastError, match=r"2\.weight holds NaN"):
            pxfast.score(model, batch((4,)), criterion=name)
