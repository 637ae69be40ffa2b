"""score(): its identities, the untouched model, every form of data, and bad input."""

from __future__ import annotations

import copy
import math
import random
import warnings

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DEEP_NET, SMALL_NET, close
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

import pxfast
from pxfast import models
from pxfast.errors import DataError, MaskError, NoRuleError, PxfastError, RangeError
from pxfast.reference import px
from pxfast.reference.paths import exact_ntk_trace

F32, F64 = torch.float32, torch.float64
CRITERIA = ("px", "px-joint")


def assert_same(actual, expected, tolerance):
    assert list(actual) == list(expected)
    for name in expected:
        close(actual[name], expected[name], tolerance, name)


def assert_bit_equal(actual, expected):
    assert list(actual) == list(expected)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(3)
    return models.resnet20().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))


# ---- conservation, rescaling, permutation ------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_layers_that_cut_every_path_total_one(criterion, resnet, images):
    masks = nets.random_masks(resnet, 0.4)
    totals = pxfast.score(resnet, images, criterion=criterion, masks=masks).totals()
    for name in ("conv1.weight", "fc.weight"):
        assert totals[name] == pytest.approx(1, abs=DEEP_NET[F32])
    assert all(0 < total < 1 + DEEP_NET[F32] for total in totals.values())


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
    density=st.floats(0.3, 1.0),
)
def test_every_layer_of_a_chain_totals_one(sizes, seed, density):
    model = nets.mlp(seed, tuple(sizes)).double()
    for index in range(1, len(model), 2):
        model[index] = nn.LeakyReLU(0.1)  # a ReLU may close every path
    x = nets.random_batch((sizes[0],), 3, seed).double()
    scores = pxfast.score(model, x, masks=nets.random_masks(model, density, seed))
    for total in scores.totals().values():
        assert total == pytest.approx(1, abs=SMALL_NET[F64])
    assert all(bool((score >= 0).all()) for score in scores.values())


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("factor", [4.0, 0.125])
def test_rescaling_a_channel_by_a_power_of_two_is_bit_exact(criterion, factor):
    model, x = nets.conv(seed=1), nets.random_batch((1, 5, 5), 3)
    masks = nets.random_masks(model, 0.8)
    before = pxfast.score(model, x, criterion=criterion, masks=masks)
    with torch.no_grad():
        model[0].weight[1] *= factor
        model[0].bias[1] *= factor
        model[2].weight[:, 1] /= factor
    assert_bit_equal(pxfast.score(model, x, criterion=criterion, masks=masks), before)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rescaling_a_channel_by_any_factor(criterion):
    model, x = nets.leaky(seed=1).double(), nets.random_batch((4,), 3).double()
    before = pxfast.score(model, x, criterion=criterion)
    with torch.no_grad():
        model[0].weight[2] *= 3.7
        model[0].bias[2] *= 3.7
        model[2].weight[:, 2] /= 3.7
    assert_same(pxfast.score(model, x, criterion=criterion), before, SMALL_NET[F64])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_permuting_hidden_channels_permutes_scores(criterion):
    model, x = nets.conv(seed=2, channels=4).double(), nets.random_batch((1, 5, 5), 3).double()
    masks = nets.random_masks(model, 0.7)
    before = pxfast.score(model, x, criterion=criterion, masks=masks)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, masks["0.weight"]):
            tensor.copy_(tensor[order].clone())
        for tensor in (model[2].weight, masks["2.weight"]):
            tensor.copy_(tensor[:, order].clone())
    after = pxfast.score(model, x, criterion=criterion, masks=masks)
    close(after["0.weight"], before["0.weight"][order], SMALL_NET[F64])
    close(after["2.weight"], before["2.weight"][:, order], SMALL_NET[F64])
    close(after["5.weight"], before["5.weight"], SMALL_NET[F64])


# ---- data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_any_split_of_the_data_gives_the_same_scores(criterion):
    model, x = nets.residual(seed=3), nets.random_batch((1, 4, 4), 7)
    masks = nets.random_masks(model, 0.6)
    whole = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert whole.provenance["data_pass"] == "run"
    for split in ([1] * 7, [3, 4], [5, 2]):
        parts = list(x.split(split))
        assert_same(
            pxfast.score(model, parts, criterion=criterion, masks=masks), whole, SMALL_NET[F32]
        )
    twice = pxfast.score(model, [x, x], criterion=criterion, masks=masks)
    assert_same(twice, whole, SMALL_NET[F32])
    small = pxfast.score(model, x, criterion=criterion, masks=masks, max_memory=2000)
    assert_same(small, whole, SMALL_NET[F32])


def test_max_memory_bounds_what_path_tensors_hold(monkeypatch):
    from pxfast.paths.network import Network

    sizes = []
    tensor = Network.tensor

    def spy(self, value, path):
        sizes.append(value.shape[0])
        return tensor(self, value, path)

    monkeypatch.setattr(Network, "tensor", spy)
    model, x = nets.residual(seed=3), nets.random_batch((1, 4, 4), 7)
    pxfast.score(model, x, criterion="px-joint", max_memory=2000)
    assert 1 <= max(sizes) < 7


def test_the_data_cancels_where_the_last_layer_is_whole(resnet, images):
    masks = nets.random_masks(resnet, 0.5)
    del masks["fc.weight"]
    skipped = pxfast.score(resnet, images, masks=masks)
    assert skipped.provenance["data_pass"].startswith("skipped")
    other = pxfast.score(resnet, torch.randn_like(images), masks=masks)
    assert_bit_equal(other, skipped)
    masks["fc.weight"] = torch.ones_like(resnet.fc.weight)
    assert pxfast.score(resnet, images, masks=masks).provenance["data_pass"] != "run"
    masks["fc.weight"][0, 0] = 0
    assert pxfast.score(resnet, images, masks=masks).provenance["data_pass"] == "run"


def test_a_skipped_data_pass_changes_nothing(resnet, images, monkeypatch):
    from pxfast.paths.passes import Passes

    skipped = pxfast.score(resnet, images)
    monkeypatch.setattr(Passes, "data_cancels", lambda self, batch: False)
    run = pxfast.score(resnet, images)
    assert run.provenance["data_pass"] == "run"
    assert_same(run, skipped, DEEP_NET[F32])


def test_dense_predictions_depend_on_the_position():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
    scores = pxfast.score(model, torch.randn(2, 1, 6, 6))
    assert scores.provenance["data_pass"] == "run"


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, pixels, scale=None):
        hidden = torch.relu(self.a(pixels))
        return {"logits": self.b(hidden), "hidden": hidden}


def test_every_form_of_data():
    model, x, y = Keywords(), torch.randn(6, 4), torch.arange(6) % 2
    masks = {"b.weight": torch.tensor([[1, 0, 1], [1, 1, 0]])}
    expected = pxfast.score(model, x, masks=masks)
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    forms = [
        (x, y),
        [x],
        [(x[:3], y[:3]), (x[3:], y[3:])],
        {"pixels": x, "labels": y},
        [{"pixels": x[:2]}, {"pixels": x[2:]}],
        loader,
        iter([x]),
    ]
    for data in forms:
        assert_same(pxfast.score(model, data, masks=masks), expected, SMALL_NET[F32])
    assert expected.provenance["samples"] == 6
    assert pxfast.score(model, loader).provenance["samples"] == 6


def test_output_selects_what_counts():
    model, x = Keywords(), torch.randn(6, 4)
    with pytest.warns(UserWarning, match=r"never uses.*b\.weight"):
        hidden = pxfast.score(model, x, output="hidden")
    assert list(hidden) == ["a.weight"] and hidden.provenance["unused"] == ["b.weight"]
    assert list(pxfast.score(model, x, output=lambda result: result["logits"])) == [
        "a.weight",
        "b.weight",
    ]
    with pytest.raises(DataError, match=r"output='nothing' selects nothing.*logits"):
        pxfast.score(model, x, output="nothing")


# ---- masks -------------------------------------------------------------------------------------


class Masking(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def test_a_mask_means_the_same_however_it_is_given():
    x = nets.random_batch((1, 5, 5), 3)
    masks = nets.random_masks(nets.conv(seed=5), 0.5)
    given = pxfast.score(nets.conv(seed=5), x, masks=masks)
    for name, mask in masks.items():
        assert bool((given[name][~mask] == 0).all())
    pruned, masked, zeroed = (nets.conv(seed=5) for _ in range(3))
    for name, mask in masks.items():
        module = name.rpartition(".")[0]
        prune.custom_from_mask(pruned.get_submodule(module), "weight", mask)
        parametrize.register_parametrization(
            masked.get_submodule(module), "weight", Masking(mask.float())
        )
        with torch.no_grad():
            zeroed.get_parameter(name)[~mask] = 0
    assert_bit_equal(pxfast.score(pruned, x), given)
    assert_bit_equal(pxfast.score(masked, x), given)
    assert_bit_equal(pxfast.score(zeroed, x, masks=masks), given)
    as_floats = {name: mask.float() for name, mask in masks.items()}
    assert_bit_equal(pxfast.score(nets.conv(seed=5), x, masks=as_floats), given)


def test_given_masks_apply_on_top_of_the_model_s_own():
    x, model = nets.random_batch((4,), 3), nets.mlp(seed=6)
    first, second = nets.random_masks(model, 0.7, 1), nets.random_masks(model, 0.7, 2)
    both = pxfast.score(model, x, masks={name: first[name] & second[name] for name in first})
    for name, mask in first.items():
        prune.custom_from_mask(model.get_submodule(name.rpartition(".")[0]), "weight", mask)
    assert_bit_equal(pxfast.score(model, x, masks=second), both)


def test_a_masked_weight_may_hold_anything():
    model, x = nets.mlp(seed=7), nets.random_batch((4,), 3)
    masks = nets.random_masks(model, 0.5)
    expected = pxfast.score(model, x, masks=masks)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name)[~mask] = 1e30
    assert_bit_equal(pxfast.score(model, x, masks=masks), expected)


# ---- the model is untouched --------------------------------------------------------------------


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


# ---- which weights -----------------------------------------------------------------------------


def test_include_and_exclude(resnet, images):
    every = pxfast.score(resnet, images)
    assert list(every) == nets.prunable_names(resnet)
    without = pxfast.score(resnet, images, exclude=["fc.weight", "layer1.*", resnet.conv1])
    left = [n for n in every if not n.startswith(("fc", "layer1", "conv1"))]
    assert list(without) == left
    for name in without:
        close(without[name], every[name], DEEP_NET[F32])
    only = pxfast.score(resnet, images, include=resnet.layer3)
    assert list(only) == [n for n in every if n.startswith("layer3")]
    with pytest.raises(PxfastError, match=r"exclude: 'layer9.\*' matches no weight"):
        pxfast.score(resnet, images, exclude="layer9.*")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


def test_tied_weights_have_one_score_that_adds_their_uses():
    model, x = Tied().double(), torch.randn(3, 4, dtype=F64)
    scores = pxfast.score(model, x)
    assert list(scores) == ["a.weight", "head.weight"]
    untied = copy.deepcopy(model)
    untied.b.weight = nn.Parameter(model.a.weight.detach().clone())
    separate = pxfast.score(untied, x)
    close(scores["a.weight"], separate["a.weight"] + separate["b.weight"], SMALL_NET[F64])


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.body(x))
        self.auxiliary(x)
        return self.head(x)


def test_weights_that_the_output_never_uses_are_named():
    with pytest.warns(UserWarning, match=r"auxiliary\.weight"):
        scores = pxfast.score(Auxiliary(), torch.randn(2, 4))
    assert list(scores) == ["body.weight", "head.weight"]


# ---- range -------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 12.0])  # values end near 1e36
def test_depth_neither_overflows_nor_underflows(criterion, scale):
    layers = [nn.Sequential(nn.Linear(5, 5), nn.LeakyReLU(0.5)) for _ in range(60)]
    model = nets.seeded(lambda: nn.Sequential(nn.Linear(4, 5), *layers, nn.Linear(5, 3)), 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    x = nets.random_batch((4,), 3)
    masks = nets.random_masks(model, 0.6)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    for total in scores.totals().values():
        assert total == pytest.approx(1, abs=1e-4)
    if scale == 1:
        wide = pxfast.score(model.double(), x.double(), criterion=criterion, masks=masks)
        assert_same(scores, wide, 60 * SMALL_NET[F32])


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.a(x) + self.b(x))


def test_a_branch_that_underflows_is_an_error_and_an_empty_one_is_not():
    model = Branches()
    with torch.no_grad():
        model.b.weight.mul_(1e-25)
    with pytest.raises(RangeError, match=r"b\.weight underflow"):
        pxfast.score(model, torch.randn(3, 4))
    masks = {"b.weight": torch.zeros(4, 4)}
    scores = pxfast.score(model, torch.randn(3, 4), masks=masks)
    assert not scores["b.weight"].any()
    with torch.no_grad():
        model.b.weight.fill_(1)
        model.b.weight[0, 0] = 1e-25
    assert pxfast.score(model, torch.randn(3, 4)).provenance["underflowed"] == {"b.weight": 1}


def test_dead_layers_behind_an_empty_one_are_not_underflow():
    model = nn.Sequential(
        nn.Linear(4, 4), nets.Sum(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Identity()),
        nn.Linear(4, 2),
    )  # fmt: skip
    masks = {"1.0.0.weight": torch.zeros(4, 4)}
    for criterion in CRITERIA:
        scores = pxfast.score(model, torch.randn(3, 4), masks=masks, criterion=criterion)
        assert not scores["1.0.1.weight"].any() and scores["2.weight"].any()


def test_log2_of_r_is_reported():
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    x = torch.ones(1, 3)
    assert pxfast.score(model, x).provenance["log2_R"] == pytest.approx(math.log2(14))
    joint = pxfast.score(model, x * 2, criterion="px-joint")
    assert joint.provenance["log2_R"] == pytest.approx(math.log2(4 * 14))


# ---- bad input ---------------------------------------------------------------------------------


class NoInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(torch.ones(x.shape[0], 4))


class Exotic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cumprod(self.layer(x), 1)


def test_bad_data():
    model = nets.mlp()
    with pytest.raises(DataError, match="no batches"):
        pxfast.score(model, [])
    with pytest.raises(DataError, match="is empty"):
        pxfast.score(model, torch.zeros(0, 4))
    with pytest.raises(DataError, match="no floating-point tensor"):
        pxfast.score(model, torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(DataError, match="expected a tensor"):
        pxfast.score(model, 3)
    with pytest.raises(DataError, match=r"batch 1 \(inputs of shape \[\[2, 7\]\]\)"):
        pxfast.score(model, torch.randn(2, 7), masks=nets.random_masks(model, 0.5))
    bad = torch.randn(2, 4)
    bad[1, 2] = math.nan
    with pytest.raises(DataError, match="batch 2 holds NaN or infinity"):
        pxfast.score(model, [torch.randn(2, 4), bad], masks=nets.random_masks(model, 0.5))


def test_bad_models():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got str"):
        pxfast.score("model", torch.randn(2, 4))
    with pytest.raises(PxfastError, match="no prunable weights"):
        pxfast.score(nn.Sequential(nn.ReLU()), torch.randn(2, 4).abs())
    model = nets.mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
    with pytest.raises(PxfastError, match=r"2\.weight holds NaN or infinity"):
        pxfast.score(model, torch.randn(2, 4))
    with pytest.raises(DataError, match="does not depend on its input"):
        pxfast.score(NoInput(), torch.randn(2, 4))
    with pytest.raises(NoRuleError, match=r"cumprod.*Exotic[\s\S]*@pxfast\.rule\(torch\.cumprod"):
        pxfast.score(Exotic(), torch.randn(2, 4))
    with pytest.raises(DataError, match="expected the samples first"):
        pxfast.score(nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), torch.randn(2, 4))


def test_buffers_may_hold_infinity():
    """Masks and bounds do; a norm's statistic may not, and none may hold NaN."""
    model, x = nets.conv(), torch.randn(2, 1, 5, 5)
    expected = pxfast.score(model, x)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    assert pxfast.score(model, x) == expected
    model.register_buffer("mask", torch.tensor([0.0, math.nan]))
    with pytest.raises(PxfastError, match="mask holds NaN"):
        pxfast.score(model, x)
    norm = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    norm[1].running_mean[0] = math.inf
    with pytest.raises(PxfastError, match=r"1\.running_mean holds NaN or infinity"):
        pxfast.score(norm, x)


def test_bad_masks():
    model, x = nets.mlp(), torch.randn(2, 4)
    with pytest.raises(MaskError, match=r"'layer' is not a weight of the model.*0\.weight"):
        pxfast.score(model, x, masks={"layer": torch.ones(2)})
    with pytest.raises(MaskError, match=r"0\.weight must have the weight's shape \[5, 4\], got"):
        pxfast.score(model, x, masks={"0.weight": torch.ones(4, 5)})
    with pytest.raises(MaskError, match="other than 0 and 1"):
        pxfast.score(model, x, masks={"0.weight": torch.full((5, 4), 0.5)})
    with pytest.raises(RangeError, match=r"no path reaches the output.*2\.weight"):
        pxfast.score(model, x, masks={"2.weight": torch.zeros(4, 5)})


class TwoMasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        mask = torch.eye(4)
        x = nn.functional.linear(x, self.layer.weight * mask)
        return nn.functional.linear(x, self.layer.weight * (1 - mask))


def test_a_weight_under_two_masks_is_refused():
    with pytest.raises(MaskError, match=r"layer\.weight is used under two different masks"):
        pxfast.score(TwoMasks(), torch.randn(2, 4))


def test_bad_options():
    model, x = nets.mlp(), torch.randn(2, 4)
    for options, message in [
        ({"criterion": "magic"}, "criterion: expected one of px, px-joint"),
        ({"batchnorm": "both"}, 'batchnorm: expected "running" or "data"'),
        ({"dtype": torch.float64}, "dtype: expected torch.bfloat16"),
        ({"max_memory": 0}, "max_memory: expected a positive number"),
    ]:
        with pytest.raises(PxfastError, match=message):
            pxfast.score(model, x, **options)


def test_autocast_rounds_gates_only(resnet, images):
    masks = nets.random_masks(resnet, 0.5)
    full = pxfast.score(resnet, images, masks=masks)
    half = pxfast.score(resnet, images, masks=masks, dtype=torch.bfloat16)
    assert all(score.dtype == F32 for score in half.values())
    for name in full:
        close(half[name], full[name], 0.05, name)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        skipped = pxfast.score(resnet, images)
    assert_bit_equal(skipped, pxfast.score(resnet, images))


# ---- the bound of the trace --------------------------------------------------------------------


@pytest.mark.parametrize("density", [None, 0.85])
@pytest.mark.parametrize("build", [nets.mlp, nets.conv, nets.maxpool, nets.residual, nets.leaky])
def test_the_trace_of_the_ntk_is_below_the_bound(build, density):
    shape = next(net.shape for net in nets.NETS.values() if net.build is build)
    for seed in range(3):
        model = build(seed, bias=False).double()
        x = nets.random_batch(shape, 3, seed).double()
        masks = nets.random_masks(model, density, seed) if density else None
        bound = pxfast.ntk_trace_bound(model, [x[:1], x[1:]], masks=masks)
        assert bound == pytest.approx(px.ntk_trace_bound(model, x, masks), rel=SMALL_NET[F64])
        assert 0 < exact_ntk_trace(model, x, masks) <= bound * (1 + SMALL_NET[F64])


def test_a_bound_beyond_float64_is_an_error():
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(4)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e18)
    with pytest.raises(RangeError, match=r"beyond float64"):
        pxfast.ntk_trace_bound(nn.Sequential(*model, *model, *model), torch.ones(1, 2))
