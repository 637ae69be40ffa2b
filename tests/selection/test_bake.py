from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pxfast


class Everything(nn.Module):
    """A weight in every place that a mask can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.linear = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.linear.weight
        self.normed = parametrizations.weight_norm(nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        tokens, _ = self.attention(tokens, tokens, tokens)
        return self.normed(self.tied(self.linear(tokens))).mean(1)


NAMES = (
    "conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "linear.weight",
    "normed.weight",
)  # fmt: skip


def masked() -> tuple[Everything, pxfast.Masks]:
    torch.manual_seed(0)
    model = Everything().eval()
    shapes = {name: pick(model, name).shape for name in NAMES}
    masks = pxfast.Masks({name: torch.rand(shape) < 0.4 for name, shape in shapes.items()})
    return masks.apply_(model), masks


def pick(model: nn.Module, name: str) -> torch.Tensor:
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute)


def test_weights_are_plain_and_compute_the_same():
    model, masks = masked()
    x = torch.randn(2, 3, 6, 6)
    before = model(x)
    assert pxfast.bake(model, in_place=True) is model
    assert torch.equal(model(x), before)
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(parameters[name] != 0, mask), name
    plain = {name for name in Everything().state_dict() if "parametrizations" not in name}
    assert set(model.state_dict()) == plain | {"normed.weight"}
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_shared_weights_stay_shared():
    model, _ = masked()
    model = pxfast.bake(model)
    assert model.tied.weight is model.linear.weight


def test_what_has_no_mask_stays_as_it_is():
    model = Everything()
    keys = list(model.state_dict())
    pxfast.bake(model)
    assert list(model.state_dict()) == keys
    assert parametrize.is_parametrized(model.normed, "weight")


def test_the_model_itself_stays_masked():
    model, masks = masked()
    x = torch.randn(2, 3, 6, 6)
    model(x).sum().backward()  # the weights that hooks computed are part of a graph now
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = pxfast.bake(model)
    assert pxfast.Masks.from_model(model) == masks
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in plain.parameters()}
    assert torch.equal(plain(x), model(x))


def test_masks_are_gone_afterwards():
    model, _ = masked()
    with pytest.raises(pxfast.errors.MaskError, match="carries no masks"):
        pxfast.Masks.from_model(pxfast.bake(model))
