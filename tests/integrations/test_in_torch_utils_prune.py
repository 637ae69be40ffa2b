"""torch.nn.utils.prune's own functions with PX scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import pxfast
from pxfast.errors import MaskError, PxfastError
from pxfast.integrations.torch_utils_prune import PXUnstructured

IMAGES = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def parameters(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


class Attention(nn.Module):
    """nn.MultiheadAttention and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))


def random_scores(model: nn.Module, *names: str) -> pxfast.Scores:
    generator = torch.Generator().manual_seed(2)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return pxfast.Scores({n: torch.rand(shapes[n], generator=generator) + 0.1 for n in names})


# ---- global_unstructured ----


@pytest.mark.parametrize("amount", [0.3, 0.75, 0.98, 100])
@pytest.mark.parametrize("method", [PXUnstructured, prune.L1Unstructured])
def test_global_unstructured_makes_the_masks_of_the_scores(method, amount):
    model = net()
    scores = pxfast.score(model, IMAGES)
    prune.global_unstructured(
        parameters(model), method, scores.as_importance_scores(model), amount=amount
    )
    sparsity = amount if isinstance(amount, float) else amount / scores.total
    assert pxfast.Masks.from_model(model) == scores.masks(sparsity=sparsity)


def test_a_second_call_prunes_what_is_left():
    model = net()
    scores = pxfast.score(model, IMAGES)
    for _ in range(2):
        prune.global_unstructured(
            parameters(model), PXUnstructured, scores.as_importance_scores(model), amount=0.5
        )
    masks = pxfast.Masks.from_model(model)
    assert masks == scores.masks(density=masks.kept / masks.total)
    assert masks.kept == masks.total // 4


def test_a_weight_without_scores_is_refused_where_torch_takes_its_magnitude():
    model = net()
    model[4].weight.data.mul_(1e6)  # by magnitude all of it would stay
    scores = pxfast.score(model, IMAGES, exclude="4.weight")
    complete = scores.as_importance_scores(model)
    with pytest.raises(MaskError, match=r"'4\.weight' has no scores.*leave it out of parameters="):
        prune.global_unstructured(parameters(model), PXUnstructured, complete, amount=0.5)
    assert not prune.is_pruned(model)

    prune.global_unstructured(parameters(model), prune.L1Unstructured, dict(complete), amount=36)
    masks = pxfast.Masks.from_model(model)
    assert masks["4.weight"].all()  # what a plain dictionary silently does
    assert not masks["0.weight"].any()


def test_the_amount_counts_only_the_parameters_that_were_given():
    model = net()
    scores = pxfast.score(model, IMAGES, exclude="4.weight")
    prune.global_unstructured(
        parameters(model)[:1], PXUnstructured, scores.as_importance_scores(model), amount=0.5
    )
    assert pxfast.Masks.from_model(model) == scores.masks(density=0.5)


def test_magnitudes_are_no_scores():
    model = net()
    with pytest.raises(PxfastError, match="PX scores are never negative"):
        prune.global_unstructured(parameters(model), PXUnstructured, amount=0.5)


def test_of_equal_scores_the_first_stay():
    model = net()
    scores = pxfast.Scores({"0.weight": torch.ones(4, 1, 3, 3), "4.weight": torch.ones(3, 64)})
    prune.global_unstructured(
        parameters(model), PXUnstructured, scores.as_importance_scores(model), amount=228 - 40
    )
    masks = pxfast.Masks.from_model(model)
    assert masks["0.weight"].all()
    assert masks["4.weight"].flatten().nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_a_shared_weight_has_its_scores_at_each_place():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    scores = random_scores(model, "0.weight")
    complete = scores.as_importance_scores(model)
    assert torch.equal(complete[model[2], "weight"], scores["0.weight"])


def test_scores_of_another_model_are_refused():
    scores = pxfast.score(net(), IMAGES)
    with pytest.raises(MaskError, match=r"the score of '0\.weight' has shape \[4, 1, 3, 3\]"):
        scores.as_importance_scores(nn.Sequential(nn.Linear(4, 4)))


# ---- nn.MultiheadAttention ----


def test_attention_is_included():
    model = Attention()
    scores = random_scores(model, "attention.in_proj_weight", "fc.weight")
    prune.global_unstructured(
        [(model.attention, "in_proj_weight"), (model.fc, "weight")],
        PXUnstructured,
        scores.as_importance_scores(model),
        amount=0.6,
    )
    masks = pxfast.Masks.from_model(model)
    assert masks == scores.masks(sparsity=0.6)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(2, 5, 8)).square().sum().backward()
        optimiser.step()
    model(torch.randn(2, 5, 8))
    assert torch.equal(model.attention.in_proj_weight != 0, masks["attention.in_proj_weight"])


def test_the_output_projection_is_refused_and_apply_masks_it():
    model = Attention()
    scores = random_scores(model, "attention.out_proj.weight")
    with pytest.raises(MaskError, match=r"'attention\.out_proj\.weight' cannot be pruned by torch"):
        prune.global_unstructured(
            [(model.attention.out_proj, "weight")],
            PXUnstructured,
            scores.as_importance_scores(model),
            amount=0.5,
        )
    masks = scores.masks(sparsity=0.5)
    masks.apply_(model)
    assert pxfast.Masks.from_model(model) == masks


def test_why_it_is_refused():
    """torch's hook does not run there: the second backward goes through the first forward."""
    model = Attention()
    prune.l1_unstructured(model.attention.out_proj, "weight", 0.5)
    model(torch.randn(2, 5, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        model(torch.randn(2, 5, 8)).sum().backward()


# ---- PXUnstructured on one parameter ----


def test_apply_to_one_parameter():
    model = net()
    scores = pxfast.score(model, IMAGES)
    method = PXUnstructured.apply(model[4], "weight", 0.75, importance_scores=scores["4.weight"])
    assert isinstance(method, PXUnstructured)
    expected = pxfast.Scores({"4.weight": scores["4.weight"]}).masks(sparsity=0.75)
    assert torch.equal(model[4].weight_mask.bool(), expected["4.weight"])
    assert torch.equal(model[4].weight, model[4].weight_orig * expected["4.weight"])
    prune.remove(model[4], "weight")
    assert pxfast.Masks.from_model(model, zeros=True)["4.weight"].equal(expected["4.weight"])


def test_apply_without_scores_is_refused():
    with pytest.raises(TypeError, match="importance_scores"):
        PXUnstructured.apply(net()[4], "weight", 0.75)
    with pytest.raises(TypeError, match="importance_scores must be the scores of 'weight'"):
        PXUnstructured.apply(net()[4], "weight", 0.75, None)


def test_what_an_earlier_mask_removed_stays_removed():
    earlier = torch.tensor([0.0, 1.0, 1.0, 1.0])
    mask = PXUnstructured(2).compute_mask(torch.zeros(4), earlier)
    assert mask.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("amount", [-1, 1.0, 1.5, -0.1])
def test_an_amount_out_of_range_is_refused(amount):
    with pytest.raises(ValueError, match="amount must be"):
        PXUnstructured.apply(net()[4], "weight", amount, torch.ones(3, 64))


def test_scores_of_another_shape_are_refused():
    with pytest.raises(AssertionError, match="importance_scores should have the same shape"):
        PXUnstructured.apply(net()[4], "weight", 0.5, torch.ones(4))


# ---- reading masks back ----


@pytest.mark.parametrize("in_place", [False, True])
def test_masks_are_read_back(in_place):
    model = net()
    masks = pxfast.score(model, IMAGES).masks(density=0.4)
    masks.apply_(model, in_place=in_place)
    assert pxfast.Masks.from_model(model, zeros=in_place) == masks
    assert pxfast.Masks.from_model(model, zeros=True) == masks


def test_a_model_without_masks_has_none_to_read():
    with pytest.raises(MaskError, match=r"carries no masks.*zeros=True"):
        pxfast.Masks.from_model(net())
    with pytest.raises(MaskError, match="no linear or convolution layer"):
        pxfast.Masks.from_model(nn.ReLU(), zeros=True)


def test_zeros_of_attention_and_of_shared_weights():
    model = Attention()
    model.extra = nn.Linear(8, 3)
    model.extra.weight = model.fc.weight
    masks = random_scores(model, "attention.in_proj_weight", "fc.weight").masks(density=0.5)
    masks.apply_(model, in_place=True)
    found = pxfast.Masks.from_model(model, zeros=True)
    assert sorted(found) == ["attention.in_proj_weight", "attention.out_proj.weight", "fc.weight"]
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
