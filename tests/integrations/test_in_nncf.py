from __future__ import annotations

import copy

import pytest
import torch
from libraries import library
from torch import Tensor, nn

import pxfast
from pxfast.errors import MaskError

nncf = library("nncf")

from pxfast.integrations.nncf import masks_of, set_masks  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.norm(self.conv(x)).relu()).relu().mean((2, 3)))


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


def test_the_hooks_hold_exactly_these_masks(net, images, masks):
    expected = pxfast.bake(masks.apply_(copy.deepcopy(net)))(images)
    assert set_masks(net, masks) is net
    assert masks_of(net) == masks
    assert torch.equal(net(images), expected)


def test_scores_under_them_are_those_under_the_masks(net, images, masks):
    expected = pxfast.score(net, images, masks=masks)
    scores = pxfast.score(set_masks(net, masks), images)
    assert list(scores) == list(expected)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_the_statistic_of_nncf_counts_them(net, masks):
    found = nncf.pruning_statistic(set_masks(net, masks))
    ratios = {row.tensor_name: row.pruned_ratio for row in found.pruned_tensors}
    counts = {name: (~mask).sum().item() / mask.numel() for name, mask in masks.items()}
    assert ratios == counts


def test_masks_that_nncf_chose_are_replaced(net, images, masks):
    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
    pruned = nncf.prune(net, mode=mode, ratio=0.9, examples_inputs=images)
    assert masks_of(pruned) != masks
    few = {name: mask for name, mask in masks.items() if name != "up.weight"}
    kept = masks_of(pruned)["up.weight"]
    assert masks_of(set_masks(pruned, few)) == pxfast.Masks(
        {"conv.weight": masks["conv.weight"], "up.weight": kept, "head.weight": few["head.weight"]}
    )


def test_training_keeps_the_zeros_and_strip_makes_them_permanent(net, images, masks):
    set_masks(net, masks).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        net(images).square().mean().backward()
        optimizer.step()
    net.eval()
    stripped = nncf.strip(
        net, example_input=images, strip_format=nncf.StripFormat.IN_PLACE, do_copy=True
    )
    for name, mask in masks.items():
        assert torch.equal(stripped.get_parameter(name) != 0, mask), name
    assert torch.equal(stripped(images), net(images))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2)), "nn.Sequential would call: put it into a module with"),
        (nn.Linear(3, 2), r"'weight': NNCF masks parameters, .* pxfast.bake\(model, in_place=True"),
    ],
    ids=["sequential", "a pruned layer"],
)
def test_what_nncf_cannot_hold_is_refused_before_any_change(model, message):
    name = "0.weight" if isinstance(model, nn.Sequential) else "weight"
    masks = pxfast.Masks({name: torch.tensor([[True, False, True]] * 2)})
    if isinstance(model, nn.Linear):
        masks.apply_(model)
    keys = list(model.state_dict())
    with pytest.raises(MaskError, match=message):
        set_masks(model, masks)
    assert list(model.state_dict()) == keys
    assert "forward" not in vars(model)


def test_masks_of_another_model_are_refused_before_any_change(net, masks):
    with pytest.raises(MaskError, match="the model has no weight 'other'"):
        set_masks(net, {**masks, "other": torch.ones(1)})
    assert "forward" not in vars(net)


def test_a_model_without_masks_says_how_to_get_some(net):
    with pytest.raises(MaskError, match=r"no masks of NNCF; set_masks\(model, masks\)"):
        masks_of(net)
