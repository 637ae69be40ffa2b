from __future__ import annotations

import copy

import pytest
import torch
from libraries import library
from torch import Tensor, nn

import pxfast
from pxfast.errors import MaskError

library("modelopt.torch.sparsity")

import modelopt.torch.opt as mto  # noqa: E402
import modelopt.torch.sparsity as mts  # noqa: E402

from pxfast.integrations.modelopt import masks_of, set_masks  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.middle, self.lm_head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.middle(self.norm(self.conv(x)).relu()).relu().mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masks(net: Net, images: Tensor) -> pxfast.Masks:
    return pxfast.prune(net, images, density=0.3, rounds=3, progress=False)


def test_the_modules_hold_exactly_these_masks(net, images, masks):
    expected = pxfast.bake(masks.apply_(copy.deepcopy(net)))(images)
    assert set_masks(net, masks) is net
    assert masks_of(net) == masks
    assert torch.equal(net(images), expected)


def test_scores_under_them_are_those_under_the_masks(net, images, masks):
    expected = pxfast.score(net, images, masks=masks)
    scores = pxfast.score(set_masks(net, masks), images)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_training_keeps_the_zeros_and_export_makes_them_permanent(net, images, masks):
    set_masks(net, masks).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        net(images).square().mean().backward()
        optimizer.step()
    exported = mts.export(net)
    for name, mask in masks.items():
        assert torch.equal(exported.get_parameter(name) != 0, mask), name
    assert type(exported.conv) is nn.Conv2d


def test_saving_and_restoring_by_modelopt_keeps_the_masks(net, masks, tmp_path):
    mto.save(set_masks(net, masks), tmp_path / "model.pth")
    assert masks_of(mto.restore(Net(), tmp_path / "model.pth")) == masks


def test_layers_without_a_mask_keep_everything(net, masks):
    few = {name: mask for name, mask in masks.items() if name != "middle.weight"}
    set_masks(net, few)
    assert set(masks_of(net)) == set(few)
    assert net.middle.weight.all()


def test_new_masks_replace_the_old_ones(net, masks):
    set_masks(net, masks)
    others = {name: ~mask for name, mask in masks.items() if name != "conv.weight"}
    assert masks_of(set_masks(net, others)) == pxfast.Masks(others)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.ConvTranspose2d(3, 2, 2), "Conv2d layers only, and 'weight' is one of ConvTranspose2d"),
        (nn.Linear(3, 2), r"already carries a mask .* pxfast.bake\(model, in_place=True\)"),
    ],
    ids=["another layer", "a pruned layer"],
)
def test_what_modelopt_cannot_hold_is_refused_before_any_change(layer, message):
    mask = pxfast.Masks({"weight": torch.rand(layer.weight.shape) < 0.5})
    if isinstance(layer, nn.Linear):
        mask.apply_(layer)
    kind, keys = type(layer), list(layer.state_dict())
    with pytest.raises(MaskError, match=message):
        set_masks(layer, mask)
    assert type(layer) is kind and list(layer.state_dict()) == keys


def test_masks_of_another_model_are_refused_before_any_change(net, masks):
    with pytest.raises(MaskError, match="the model has no weight 'other'"):
        set_masks(net, {**masks, "other": torch.ones(1)})
    assert type(net.conv) is nn.Conv2d


def test_a_model_without_masks_says_how_to_get_some(net):
    with pytest.raises(MaskError, match=r"no masks of ModelOpt; set_masks\(model, masks\)"):
        masks_of(net)
