"""PX behind the pruners' interface of the Synaptic-Flow family, on networks written as there."""

from __future__ import annotations

import copy

import pytest
import torch
from tolerances import DEEP_NET, close
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pxfast
from bench._synflow import (
    VGG,
    Conv2d,
    Linear,
    OfficialPX,
    ResNet,
    Segmenter,
    masked_parameters,
    prune_loop,
)
from pxfast.errors import PxfastError
from pxfast.integrations.synflow import PX

NETWORKS = {
    "resnet20": lambda: ResNet(20, width=4),
    "resnet32": lambda: ResNet(32, width=4),
    "resnet56": lambda: ResNet(56, width=2),
    "resnet110": lambda: ResNet(110, width=2),
    "vgg11": lambda: VGG(11, batchnorm=False, width=4),
    "vgg16_bn": lambda: VGG(16, batchnorm=True, width=4),
    "segmenter": Segmenter,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def loader(samples: int = 4, classes: int = 2) -> DataLoader:
    images = torch.randn(samples, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(images, torch.arange(samples) % classes), batch_size=3)


def names_of(model: nn.Module) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for _, parameter in masked_parameters(model)]


def named_masks(model: nn.Module) -> dict[str, Tensor]:
    pairs = zip(names_of(model), masked_parameters(model), strict=True)
    return {name: mask.bool() for name, (mask, _) in pairs}


@pytest.mark.parametrize("name", NETWORKS)
def test_their_loop_finds_the_masks_of_prune(name):
    model, batches = build(name), loader()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = pxfast.prune(copy.deepcopy(model), batches, density=0.3, rounds=2)
    prune_loop(model, PX(masked_parameters(model)), batches, 0.3, "global", 2)
    found = named_masks(model)
    assert list(found) == list(expected)
    for weight, mask in expected.items():
        assert torch.equal(found[weight], mask), weight
    for key, value in model.state_dict().items():
        assert "mask" in key or torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["vgg11", "resnet20"])
def test_scores_are_those_of_score(name):
    model = build(name)
    pruner = PX(masked_parameters(model), criterion="px-joint")
    pruner.score(model, None, loader(), "cpu")
    expected = pxfast.score(model, loader(), criterion="px-joint")
    for weight, (_, parameter) in zip(names_of(model), pruner.masked_parameters, strict=True):
        assert torch.equal(pruner.scores[id(parameter)], expected[weight])


def test_zeroing_the_weights_between_rounds_changes_nothing():
    """As Synaptic-Flow's own loop does, which calls apply_mask before every score."""
    model, batches = build("resnet20"), loader()
    expected = pxfast.prune(copy.deepcopy(model), batches, density=0.3, rounds=2)
    pruner = PX(masked_parameters(model))
    for kept in (0.3**0.5, 0.3):
        pruner.apply_mask()
        pruner.score(model, None, batches, "cpu")
        pruner.mask(kept, "global")
    found = named_masks(model)
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())


def test_double_precision_and_data_parallel_models():
    """NTK-SAP's loop prunes both."""
    model = build("resnet20").double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    pruner = PX(masked_parameters(model))
    pruner.score(nn.DataParallel(model), None, [(images, None)], "cpu")
    expected = pxfast.score(model, images)
    for weight, (_, parameter) in zip(names_of(model), pruner.masked_parameters, strict=True):
        assert pruner.scores[id(parameter)].dtype == torch.float64
        assert torch.equal(pruner.scores[id(parameter)], expected[weight])


def test_a_second_loop_goes_on_from_the_masks_of_the_first():
    """As in the loops over levels there: a new pruner begins with what is left."""
    model, batches = build("resnet20"), loader()
    prune_loop(model, PX(masked_parameters(model)), batches, 0.3, "global", 1)
    first = named_masks(model)
    prune_loop(model, PX(masked_parameters(model)), batches, 0.1, "global", 2)  # 0.32, then 0.1
    second = pxfast.Masks(named_masks(model))
    assert second.kept == round(0.1 * second.total)
    assert all(bool((first[name] | ~mask).all()) for name, mask in second.items())


# ---- the official code ----


def test_official_scores_are_those_of_the_official_code():
    """Two rounds, so that masks are at work; VGG-11 has biases, max-pooling and a layer "fc"."""
    model, batches = build("vgg11"), loader()
    theirs = OfficialPX(masked_parameters(model))
    ours = PX(masked_parameters(model), official=True, exact=False)
    for kept in (0.5, 0.2):
        theirs.score(model, None, batches, "cpu")
        ours.score(model, None, batches, "cpu")
        for name, (_, parameter) in zip(names_of(model), ours.masked_parameters, strict=True):
            expected = theirs.scores[id(parameter)]
            close(ours.scores[id(parameter)], expected, DEEP_NET[torch.float32], name)
            assert expected.any()
        theirs.mask(kept, "global")
        masks = named_masks(model)
        ours.mask(kept, "global")
        assert all(torch.equal(masks[name], mask) for name, mask in named_masks(model).items())
        assert ours.stats()[0] <= 0.51 * ours.stats()[1]


def test_the_official_scores_are_not_the_paper_s():
    model = build("vgg11")
    shares = []
    for options in ({}, {"official": True}):
        pruner = PX(masked_parameters(model), **options)
        pruner.score(model, None, loader(), "cpu")
        flat = torch.cat([score.flatten() for score in pruner.scores.values()])
        shares.append(flat / flat.max())
    assert (shares[0] - shares[1]).abs().max() > 0.1


# ---- masks ----


def small() -> tuple[nn.Module, list[tuple[Tensor, nn.Parameter]]]:
    torch.manual_seed(0)
    model = nn.Sequential(Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), Linear(8, 3))
    return model, list(masked_parameters(model))


def given(pruner: PX, *scores: list[float]) -> None:
    """Gives the pruner's first parameters other scores; the rest is 0."""
    for (_, parameter), values in zip(pruner.masked_parameters, scores, strict=False):
        score = torch.zeros_like(parameter).detach()
        score.view(-1)[: len(values)] = torch.tensor(values)
        pruner.scores[id(parameter)] = score


def test_exactly_as_many_stay_and_of_equal_ones_the_first():
    pruner = PX(small()[1])
    given(pruner, [1.0] * 18, [1.0] * 24)
    pruner.mask(0.5, "global")
    assert pruner.stats() == (21.0, 42)
    assert pruner.masked_parameters[0][0].all()
    assert pruner.masked_parameters[1][0].flatten().tolist() == [1.0] * 3 + [0.0] * 21


def test_their_rule_removes_every_tie():
    pruner = PX(small()[1], exact=False)
    given(pruner, [1.0] * 15 + [2.0] * 3, [1.0] * 24)
    pruner.mask(0.5, "global")
    assert pruner.stats() == (3.0, 42)
    pruner.mask(1.0, "global")  # nothing to remove: nothing changes
    assert pruner.stats() == (3.0, 42)


@pytest.mark.parametrize("exact", [True, False])
def test_local_scope_keeps_the_fraction_of_every_parameter(exact):
    pruner = PX(small()[1], exact=exact)
    given(pruner, [*range(18)], [float(1000 * i) for i in range(24)])
    pruner.mask(0.5, "local")
    assert [int(mask.sum()) for mask, _ in pruner.masked_parameters] == [9, 12]


@pytest.mark.parametrize("exact", [True, False])
def test_what_was_removed_stays_removed_whatever_its_score(exact):
    pruner = PX(small()[1], exact=exact)
    given(pruner, [*range(18)], [*range(24)])
    pruner.mask(0.3, "global")
    before = [mask.clone() for mask, _ in pruner.masked_parameters]
    pruner.invert()
    pruner.mask(0.9, "global")
    assert all(
        bool((old >= mask).all())
        for old, (mask, _) in zip(before, pruner.masked_parameters, strict=True)
    )


def test_invert_turns_the_order_and_stays_finite():
    pruner = PX(small()[1])
    given(pruner, [0.0, 1e-44, 1.0, 4.0])
    pruner.invert()
    largest = torch.finfo(torch.float32).max
    score = next(iter(pruner.scores.values()))
    assert score.flatten()[:4].tolist() == [largest, largest, 1.0, 0.25]


def test_apply_alpha_and_shuffle():
    model, pairs = small()
    pruner = PX(pairs)
    given(pruner, [*range(18)], [*range(24)])
    pruner.mask(0.25, "global")
    kept = [int(mask.sum()) for mask, _ in pairs]
    pruner.apply_mask()
    assert [int(weight.count_nonzero()) for _, weight in pairs] == kept
    before = [mask.clone() for mask, _ in pairs]
    pruner.shuffle()
    assert [int(mask.sum()) for mask, _ in pairs] == kept
    assert any(not torch.equal(a, mask) for a, (mask, _) in zip(before, pairs, strict=True))
    assert pairs[0][0] is model[0].weight_mask  # in place
    pruner.alpha_mask(0.5)
    assert pruner.stats() == (21.0, 42)


# ---- what goes in ----


def test_one_of_each_class_is_one_of_each_class():
    model, pairs = small()
    images = torch.randn(20, 1, 4, 4)
    batches = DataLoader(TensorDataset(images, torch.arange(20) % 2), batch_size=5, shuffle=True)
    subset = pxfast.balanced_subset(batches.dataset, 3)
    expected = pxfast.score(model, torch.stack([x for x, _ in subset]), criterion="px-joint")
    pruner = PX(pairs, criterion="px-joint", per_class=3)
    for _ in range(2):
        pruner.score(model, None, batches, "cpu")
        close(pruner.scores[id(pairs[0][1])], expected["0.weight"], DEEP_NET[torch.float32])


def test_the_settings_of_ntk_sap_s_loop_are_taken():
    PX(small()[1], ntksap_epsilon=0.01, ntksap_R=1)
    with pytest.raises(TypeError, match="ntksap_r"):
        model, pairs = small()
        PX(pairs, ntksap_r=1).score(model, None, [torch.ones(1, 1, 4, 4)], "cpu")


def test_a_classifier_that_is_not_masked_is_left_alone():
    torch.manual_seed(0)
    model = ResNet(20, width=2, dense=True).eval()
    prune_loop(model, PX(masked_parameters(model)), loader(), 0.5, "global", 1)
    assert model.fc.weight.all()
    assert "fc.weight" not in names_of(model)


@pytest.mark.parametrize("options", [{"bias": True}, {"batchnorm": True}, {"residual": True}])
def test_biases_and_scales_are_refused_by_name(options):
    model = build("resnet20")
    pruner = PX(masked_parameters(model, **options))
    name = r"'(fc\.bias|bn\.weight|blocks\.0\.shortcut\.weight)' has no scores"
    with pytest.raises(PxfastError, match=name):
        pruner.score(model, None, loader(), "cpu")


def test_parameters_of_another_model_are_refused():
    pruner = PX(small()[1])
    with pytest.raises(PxfastError, match=r"one of shape \[2, 1, 3, 3\] is no parameter of this"):
        pruner.score(small()[0], None, [torch.ones(1, 1, 4, 4)], "cpu")


def test_masks_before_scores_and_unknown_scopes_are_refused():
    pruner = PX(small()[1])
    with pytest.raises(PxfastError, match="there are no scores yet"):
        pruner.mask(0.5, "global")
    with pytest.raises(ValueError, match="scope must be 'global' or 'local', got 'layer'"):
        pruner.mask(0.5, "layer")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("sparsity", [-0.1, 0.0, 1.01, 50.0, float("nan")])
def test_a_sparsity_that_is_no_fraction_is_refused_and_changes_no_mask(sparsity, exact):
    model, pairs = small()
    pruner = PX(pairs, exact=exact)
    pruner.score(model, None, [(torch.randn(4, 1, 4, 4), None)], "cpu")
    with pytest.raises(ValueError, match=r"sparsity must be in \(0, 1\]"):
        pruner.mask(sparsity, "global")
    assert pruner.stats()[0] == pruner.stats()[1]
