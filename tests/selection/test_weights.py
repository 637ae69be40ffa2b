"""Where weights are, by the names of the modules' attributes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pxfast.errors import MaskError
from pxfast.selection import Masks, find_weight
from pxfast.selection.weights import own_masks, places, weight_value


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(2, 3)
        self.pruned = prune.random_unstructured(nn.Linear(3, 4), "weight", amount=0.5)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 5))
        self.scale_orig = nn.Parameter(torch.ones(5))  # a name of the user's, not of prune
        self.again = self.plain


@pytest.mark.parametrize(("name", "shape"), [
    ("plain.weight", (3, 2)), ("plain.bias", (3,)), ("pruned.weight", (4, 3)),
    ("normed.weight", (5, 4)), ("scale_orig", (5,)), ("again.weight", (3, 2)),
])  # fmt: skip
def test_found_by_the_attribute(name, shape):
    model = Model()
    module, attribute = find_weight(model, name)
    owner = name.rpartition(".")[0]
    assert module is model.get_submodule(owner)
    assert getattr(module, attribute).shape == shape
    assert weight_value(module, attribute).shape == shape


@pytest.mark.parametrize("name", ["pruned.weight_orig", "normed.parametrizations.weight.orig",
                                  "nobody.weight", "plain.in_features", "", "plain"])  # fmt: skip
def test_not_found(name):
    with pytest.raises(MaskError, match="no weight"):
        find_weight(Model(), name)


def test_places_use_the_same_names():
    assert [place.name for place in places(Model())] == [
        "scale_orig", "plain.weight", "plain.bias", "pruned.bias", "pruned.weight", "normed.bias",
        "normed.weight",
    ]  # fmt: skip


def test_asking_for_a_shape_leaves_the_model_as_it_is():
    """Spectral norm moves its vectors whenever the weight is read in training mode."""
    layer = parametrizations.spectral_norm(nn.Linear(4, 3)).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert weight_value(layer, "weight").shape == (3, 4)
    assert all(module.training for module in layer.modules())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_own_masks():
    model = Model()
    earlier = model.pruned.weight_mask.bool()
    assert list(own_masks(model)) == ["pruned.weight"]
    assert torch.equal(own_masks(model)["pruned.weight"], earlier)
    more = torch.rand(4, 3) < 0.5
    normed = torch.rand(5, 4) < 0.5
    again = torch.rand(5, 4) < 0.5
    Masks({"pruned.weight": more, "normed.weight": normed}).apply_(model)
    Masks({"normed.weight": again}).apply_(model)
    found = own_masks(model)
    assert torch.equal(found["pruned.weight"], earlier & more)
    assert torch.equal(found["normed.weight"], normed & again)


def test_found_inside_wrappers():
    model = nn.Linear(2, 2)
    assert find_weight(torch.compile(model, backend="eager"), "weight") == (model, "weight")
    assert find_weight(nn.DataParallel(model), "weight") == (model, "weight")


def test_an_applied_parametrization_survives_state_dict():
    def build():
        layer = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
        return Masks({"0.weight": torch.ones(3, 4)}).apply_(layer)

    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    mask = torch.rand(3, 4) < 0.5
    Masks({"0.weight": mask}).apply_(model)
    other = build()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[0].weight, model[0].weight)
    assert parametrize.is_parametrized(other[0], "weight")
