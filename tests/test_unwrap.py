"""The user's model behind what wraps it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pxfast.unwrap import unwrapped


def test_every_wrapper_comes_off():
    model = nn.Linear(2, 2)
    assert unwrapped(model) is model
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(torch.compile(model, backend="eager")) is model
    assert unwrapped(torch.compile(nn.DataParallel(model), backend="eager")) is model


def test_an_attribute_of_the_wrappers_name_is_no_wrapper():
    model = nn.Linear(2, 2)
    model._orig_mod = "mine"
    assert unwrapped(model) is model


@pytest.mark.parametrize("other", [None, [nn.Linear(2, 2)], nn.Linear])
def test_not_a_module(other):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        unwrapped(other)
