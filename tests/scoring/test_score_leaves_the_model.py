"""score() leaves the model and the random generators as they were, however it is called."""

from __future__ import annotations

import copy
import random

import nets
import numpy as np
import pytest
import torch
from scored import CRITERIA, assert_bit_equal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pxfast
from pxfast import models


def snapshot(model):
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "ids": [id(p) for p in model.parameters()],
        "rng": (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()),
    }


def assert_untouched(before, after):
    torch.testing.assert_close(before["state"], after["state"], rtol=0, atol=0)
    for key in ("modes", "requires", "hooks", "attributes", "ids"):
        assert before[key] == after[key], key
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert torch.equal(before["rng"][0], after["rng"][0])
    assert np.array_equal(before["rng"][1], after["rng"][1])
    assert before["rng"][2] == after["rng"][2]


def lively_model():
    model = models.resnet20()
    model.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    model.layer2.register_forward_hook(lambda module, args, output: None)
    return model


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("batchnorm", ["running", "data"])
def test_the_model_is_untouched(criterion, batchnorm, images):
    model = lively_model()
    loader = DataLoader(TensorDataset(images, torch.zeros(4)), batch_size=2, shuffle=True)
    before = snapshot(model)
    masks = nets.random_masks(model, 0.5)
    pxfast.score(model, loader, criterion=criterion, batchnorm=batchnorm, masks=masks)
    assert_untouched(before, snapshot(model))


def test_the_model_is_untouched_when_an_exception_passes(images):
    model = lively_model()
    before = snapshot(model)

    def broken():
        yield images
        random.random(), np.random.rand(), torch.rand(1)
        raise KeyboardInterrupt

    masks = nets.random_masks(model, 0.5)
    with pytest.raises(KeyboardInterrupt):
        pxfast.score(model, broken(), masks=masks)
    assert_untouched(before, snapshot(model))


def test_no_copy_of_the_model_is_made(monkeypatch, resnet, images):
    def refuse(*_):
        raise AssertionError("deepcopy was called")

    monkeypatch.setattr(copy, "deepcopy", refuse)
    pxfast.score(resnet, images)


def test_user_hooks_run_once_a_pass_and_see_the_values(images):
    model, seen = models.resnet20().eval(), []
    with torch.no_grad():
        expected = model.conv1(images)
    model.conv1.register_forward_hook(lambda module, args, output: seen.append(output))
    pxfast.score(model, images, criterion="px-joint")
    assert len(seen) == 1 and seen[0].shape == expected.shape
    assert torch.equal(seen[0].value, expected)


def test_called_in_inference_mode(resnet, images):
    expected = pxfast.score(resnet, images)
    with torch.inference_mode():
        assert_bit_equal(pxfast.score(resnet, images), expected)
    with torch.no_grad():
        assert_bit_equal(pxfast.score(resnet, images), expected)


def test_wrapped_models_are_unwrapped(resnet, images):
    expected = pxfast.score(resnet, images)
    assert_bit_equal(pxfast.score(torch.compile(resnet), images), expected)
    assert_bit_equal(pxfast.score(nn.DataParallel(resnet), images), expected)
    with pytest.raises(TypeError, match="scripted or traced"):
        pxfast.score(torch.jit.trace(nets.mlp(), torch.randn(2, 4)), torch.randn(2, 4))
