"""PXSparsifier in torch.ao.pruning's own loop, with its own schedulers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao.pruning import CubicSL, LambdaSL
from torch.nn.utils import parametrize

import pxfast
from pxfast.errors import PxfastError
from pxfast.integrations.torch_ao_pruning import PXSparsifier

IMAGES = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        self.fc = nn.Linear(8, 3)
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(torch.relu(self.norm(self.conv(x)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def masks_of(sparsifier: PXSparsifier) -> pxfast.Masks:
    names = [group["tensor_fqn"] for group in sparsifier.groups]
    masks = {
        name: group["module"].parametrizations[group["tensor_name"]][0].mask
        for name, group in zip(names, sparsifier.groups, strict=True)
    }
    return pxfast.Masks({name: masks[name] for name in names if "auxiliary" not in name})


@pytest.mark.filterwarnings("ignore:the output never uses")
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_one_step_makes_the_masks_of_the_scores(scope):
    model = net()
    expected = pxfast.score(model, IMAGES, criterion="px-joint").masks(density=0.3, scope=scope)
    sparsifier = PXSparsifier(IMAGES, 0.7, scope=scope, criterion="px-joint")
    sparsifier.prepare(model)
    sparsifier.step()
    found = masks_of(sparsifier)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sparsifier.state["fc.weight"]["mask"].bool().equal(expected["fc.weight"])
    assert model.auxiliary.parametrizations.weight[0].mask.all()  # the output never uses it


@pytest.mark.filterwarnings("ignore:the output never uses")
def test_a_scheduler_s_rounds_are_those_of_prune():
    rounds, density = 5, 0.1
    model = net()
    expected = pxfast.prune(copy.deepcopy(model), IMAGES, density=density, rounds=rounds)
    sparsifier = PXSparsifier(IMAGES, 1.0)
    sparsifier.prepare(model)
    scheduler = LambdaSL(sparsifier, lambda r: 1 - density ** (r / rounds))
    for _ in range(rounds + 1):  # the first at level 0
        sparsifier.step()
        scheduler.step()
    assert masks_of(sparsifier) == expected


@pytest.mark.filterwarnings("ignore:the output never uses")
def test_the_cubic_scheduler_training_and_squash_mask():
    model = net()
    sparsifier = PXSparsifier(IMAGES, 0.8)
    sparsifier.prepare(model)
    scheduler = CubicSL(sparsifier, init_sl=0.0, init_t=0, delta_t=1, total_t=4)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    kept = []
    for _ in range(6):
        sparsifier.step()
        scheduler.step()
        kept.append(masks_of(sparsifier).kept)
        optimiser.zero_grad()
        model(IMAGES).square().sum().backward()
        optimiser.step()
    masks = masks_of(sparsifier)
    assert kept == sorted(kept, reverse=True)
    assert masks.kept == round(0.2 * masks.total)
    sparsifier.squash_mask(params_to_keep=("sparsity_level",))
    assert not parametrize.is_parametrized(model)
    assert model.fc.sparse_params == {"sparsity_level": 0.8}
    found = pxfast.Masks.from_model(model, zeros=True)
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_levels_of_their_own():
    model = net()
    config = [
        {"tensor_fqn": "conv.weight", "sparsity_level": 0.0},
        {"tensor_fqn": "fc.weight", "sparsity_level": 0.5},
        {"tensor_fqn": "body.1.weight", "sparsity_level": 0.75},
    ]
    sparsifier = PXSparsifier(IMAGES)
    sparsifier.prepare(model, config)
    sparsifier.step()
    kept = {layer.name: layer.kept for layer in masks_of(sparsifier).layers}
    assert kept == {"conv.weight": 36, "fc.weight": 12, "body.1.weight": 128}


def test_removed_weights_never_return():
    model = net()
    sparsifier = PXSparsifier(IMAGES, 0.8)
    sparsifier.prepare(model, [{"tensor_fqn": "fc.weight"}])
    sparsifier.step()
    before = masks_of(sparsifier)
    sparsifier.groups[0]["sparsity_level"] = 0.3
    sparsifier.step()
    assert masks_of(sparsifier) == before


def test_a_mask_in_the_configuration_is_kept_even_where_scores_are_0():
    model = net()
    mask = torch.ones(3, 8)
    mask[0] = 0
    with torch.no_grad():
        model.fc.weight[2] = 0  # as low as what is masked, but alive
    sparsifier = PXSparsifier(IMAGES, 0.5)
    sparsifier.prepare(model, [{"tensor_fqn": "fc.weight", "mask": mask}])
    sparsifier.step()
    assert masks_of(sparsifier)["fc.weight"].sum(1).tolist() == [0, 8, 4]


def test_update_mask_and_enable_mask_update():
    model = net()
    sparsifier = PXSparsifier(IMAGES, 0.5)
    sparsifier.prepare(model, [{"tensor_fqn": "fc.weight"}])
    sparsifier.enable_mask_update = False
    sparsifier.step()
    assert masks_of(sparsifier).density == 1
    with torch.no_grad():
        sparsifier.update_mask(**sparsifier.groups[0])
    assert masks_of(sparsifier).density == 0.5


def test_masks_travel_in_the_sparsifier_s_state():
    first = PXSparsifier(IMAGES, 0.5)
    first.prepare(net(), [{"tensor_fqn": "fc.weight"}])
    first.step()
    second = PXSparsifier(IMAGES, 0.5)
    second.prepare(net(), [{"tensor_fqn": "fc.weight"}])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert masks_of(second) == masks_of(first)
    second.step()
    assert masks_of(second) == masks_of(first)


def test_what_cannot_be_scored_is_refused_by_name():
    sparsifier = PXSparsifier(IMAGES, 0.5)
    sparsifier.prepare(net(), [{"tensor_fqn": "fc.weight"}, {"tensor_fqn": "norm.weight"}])
    with pytest.raises(PxfastError, match=r"config: 'norm\.weight' has no scores"):
        sparsifier.step()


@pytest.mark.parametrize("level", [-0.5, 1.0, 50.0, float("nan")])
def test_a_level_that_is_no_fraction_is_refused(level: float) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    sparsifier = PXSparsifier(torch.randn(16, 4), sparsity_level=level)
    sparsifier.prepare(model)
    with pytest.raises(ValueError, match=r"sparsity_level must be in \[0, 1\)"):
        sparsifier.step()
    assert masks_of(sparsifier).density == 1
