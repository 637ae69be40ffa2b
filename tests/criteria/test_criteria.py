"""What all criteria to compare with have in common."""

from __future__ import annotations

import copy
import warnings

import nets
import pytest
import torch
from tolerances import CANCELLING, close
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import pxfast
from pxfast import criteria
from pxfast.selection.weights import MaskParametrization

OTHERS = [name for name in criteria.NAMES if name not in ("px", "px-joint")]
LABELS = torch.arange(6) % 3
NEEDS_LABELS, RUNS = ("snip", "grasp"), ("snip", "grasp", "synflow", "synflow-l2", "ntk-sap")


def batch(shape=(1, 4, 4), dtype=torch.float64):
    return nets.random_batch(shape, 6).to(dtype), LABELS


def normed_net():
    """BatchNorm with running means of 0, which leave SynFlow its flow."""
    model = nets.batchnorm().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.zero_()
    return model


def assert_close(scores, expected):
    assert list(scores) == list(expected)
    for name, score in expected.items():
        close(scores[name], score, CANCELLING / 0.01, name)  # 0.01: ε of NTK-SAP


# ---- names, settings, objects ----


def test_names():
    assert criteria.NAMES == (
        "px", "px-joint", "snip", "grasp", "synflow", "synflow-l2", "ntk-sap", "magnitude",
        "random",
    )  # fmt: skip
    assert all(criteria.get(name).name == name for name in criteria.NAMES)
    with pytest.raises(pxfast.errors.PxfastError, match=r"one of px, .*, random, got 'snap'"):
        criteria.get("snap")


@pytest.mark.parametrize("name", criteria.NAMES)
def test_a_name_and_its_object_score_alike(name):
    model = nets.batchnorm().double()
    scores = pxfast.score(model, batch(), criterion=name)
    assert scores == pxfast.score(model, batch(), criterion=criteria.get(name))
    assert scores == pxfast.score(model, batch(), criterion=name)
    assert list(scores) == nets.prunable_names(model)
    assert scores.provenance["criterion"] == name
    assert scores.provenance["pxfast"] == pxfast.__version__
    assert all(score.dtype == torch.float64 for score in scores.values())


@pytest.mark.parametrize("name", OTHERS)
def test_prune_by_name(name):
    model = normed_net().float()
    data = [batch(dtype=torch.float32)]
    masks = pxfast.prune(model, data, density=0.5, rounds=3, criterion=name)
    assert masks.kept == round(0.5 * masks.total)
    assert masks.provenance["criterion"] == name
    again = pxfast.prune(model, data, density=0.5, rounds=3, criterion=criteria.get(name))
    assert masks == again


def test_an_object_of_the_user():
    class Ones:
        def score(self, model, data, *, masks, include=None):
            self.seen = (model, data, masks, include)
            return {"weight": torch.ones(2, 3)}

    model, data, ones = nn.Linear(3, 2), torch.ones(1, 3), Ones()
    scores = pxfast.score(model, data, criterion=ones, include="weight", progress=False)
    assert isinstance(scores, pxfast.Scores)
    assert ones.seen == (model, data, {}, "weight")
    with pytest.raises(ValueError, match=r"exclude, output: options .* Ones does not take"):
        pxfast.score(model, data, criterion=ones, exclude="bias", output=0)
    with pytest.raises(TypeError, match="criterion must be a name or an object with score"):
        pxfast.score(model, data, criterion=3)


def test_an_object_may_take_any_option():
    class Any:
        def score(self, model, data, **options):
            self.options = options
            return pxfast.Scores({"weight": torch.ones(2, 3)})

    taken = Any()
    pxfast.score(nn.Linear(3, 2), None, criterion=taken, max_memory=5, progress=True)
    assert taken.options == {"masks": {}, "max_memory": 5, "progress": True}


@pytest.mark.parametrize("name", OTHERS)
def test_options_without_meaning_are_refused(name):
    model = nets.mlp()
    with pytest.raises(ValueError, match=f"dtype, max_memory: options .* {name} does not take"):
        pxfast.score(
            model, batch((4,)), criterion=name, dtype=torch.bfloat16, max_memory=1, progress=True
        )
    with pytest.raises(ValueError, match=f"batchnorm: options .* {name} does not take"):
        pxfast.score(model, batch((4,)), criterion=name, batchnorm="data")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    model, data = nets.mlp(), [batch((4,), torch.float32)]
    arguments = {"density": 0.5, "rounds": 2, "checkpoint": tmp_path / "run"}
    pxfast.prune(model, data, criterion=criteria.Random(seed=1), **arguments)
    pxfast.prune(model, data, criterion=criteria.Random(seed=1), **arguments)
    with pytest.raises(pxfast.errors.FileFormatError, match=r"Random\(seed=1\).*Random\(seed=2\)"):
        pxfast.prune(model, data, criterion=criteria.Random(seed=2), **arguments)


def test_empty_layers_are_reported_without_a_claim_about_paths():
    model, data = nets.mlp(), batch((4,), torch.float32)
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    with pytest.warns(UserWarning, match="left no weight in 2.weight. Unless other paths"):
        pxfast.prune(model, data, density=0.2, rounds=1, criterion="magnitude")


# ---- which weights ----


@pytest.mark.parametrize("name", OTHERS)
def test_include_and_exclude(name):
    model = normed_net()
    scores = pxfast.score(model, batch(), criterion=name, include=["0.*", model[3]], exclude="0")
    assert list(scores) == ["3.weight"]
    if name in ("snip", "magnitude", "synflow"):  # the others depend on what else is scored
        factor = scores["3.weight"] / pxfast.score(model, batch(), criterion=name)["3.weight"]
        assert torch.allclose(factor, factor.flatten()[0])
    with pytest.raises(pxfast.errors.PxfastError, match="exclude: 'head' matches no weight"):
        pxfast.score(model, batch(), criterion=name, exclude="head")
    with pytest.raises(pxfast.errors.PxfastError, match="no prunable weights"):
        pxfast.score(model, batch(), criterion=name, include="1.*")


class WithUnused(nn.Module):
    """A second head that evaluation does not use."""

    def __init__(self):
        super().__init__()
        self.body, self.auxiliary, self.head = nn.Linear(4, 5), nn.Linear(5, 9), nn.Linear(5, 3)

    def forward(self, x):
        x = self.body(x).relu()
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


@pytest.mark.parametrize("name", ["px", *RUNS])
def test_weights_that_the_output_never_uses_are_left_out(name):
    with pytest.warns(UserWarning, match="never uses these weights.*: auxiliary.weight") as caught:
        scores = pxfast.score(WithUnused(), batch((4,), torch.float32), criterion=name)
    assert list(scores) == ["body.weight", "head.weight"]
    assert scores.provenance["unused"] == ["auxiliary.weight"]
    assert caught[0].filename == __file__


def test_a_model_that_uses_no_weight():
    class Constant(nn.Linear):
        def forward(self, x):
            return x[:, :3].clone()

    with pytest.raises(pxfast.errors.PxfastError, match="the output uses none of them"):
        pxfast.score(Constant(4, 3), batch((4,), torch.float32), criterion="snip")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


@pytest.mark.parametrize("name", OTHERS)
def test_the_fused_projection_of_attention_is_scored(name):
    torch.manual_seed(0)
    scores = pxfast.score(Attention(), batch((5, 4), torch.float32), criterion=name)
    names = ["attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]
    assert list(scores) == names
    assert all(score.any() for score in scores.values())


# ---- masks ----


@pytest.mark.parametrize("name", OTHERS)
def test_a_mask_counts_however_it_is_given(name):
    model = normed_net()
    masks = nets.random_masks(model, 0.5)
    data = batch()
    expected = pxfast.score(model, data, criterion=name, masks=masks)
    for weight, mask in masks.items():
        assert not expected[weight][~mask].any()
        assert expected[weight][mask].any()

    pruned, parametrized, zeroed, extreme = (copy.deepcopy(model) for _ in range(4))
    for weight, mask in masks.items():
        owner = weight.removesuffix(".weight")
        prune.custom_from_mask(pruned.get_submodule(owner), "weight", mask)
        step = MaskParametrization(mask)
        parametrize.register_parametrization(parametrized.get_submodule(owner), "weight", step)
        with torch.no_grad():
            zeroed.get_parameter(weight)[~mask] = 0
            extreme.get_parameter(weight)[~mask] = 1e30
    assert pxfast.score(pruned, data, criterion=name) == expected
    assert pxfast.score(pruned, data, criterion=name, masks=masks) == expected
    assert pxfast.score(parametrized, data, criterion=name) == expected
    assert pxfast.score(zeroed, data, criterion=name, masks=masks) == expected
    assert pxfast.score(extreme, data, criterion=name, masks=masks) == expected
    as_numbers = {weight: mask.float() for weight, mask in masks.items()}
    assert pxfast.score(model, data, criterion=name, masks=as_numbers) == expected


@pytest.mark.parametrize("name", OTHERS)
def test_given_masks_and_those_of_the_model_count_together(name):
    model = normed_net()
    own, given = nets.random_masks(model, 0.7, 1), nets.random_masks(model, 0.7, 2)
    both = {weight: own[weight] & given[weight] for weight in own}
    expected = pxfast.score(model, batch(), criterion=name, masks=both)
    for weight, mask in own.items():
        owner = model.get_submodule(weight.removesuffix(".weight"))
        prune.custom_from_mask(owner, "weight", mask)
    assert pxfast.score(model, batch(), criterion=name, masks=given) == expected


@pytest.mark.parametrize("name", RUNS)
def test_masks_of_weights_that_are_not_scored_count(name):
    model = nets.mlp().double()
    masks = nets.random_masks(model, 0.5)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[2].weight.mul_(masks["2.weight"])
    scores = pxfast.score(
        model, batch((4,)), criterion=name, exclude="2.*", masks={"2.weight": masks["2.weight"]}
    )
    if name != "ntk-sap":  # which draws by the number of masked weights
        assert scores == pxfast.score(pruned, batch((4,)), criterion=name, exclude="2.*")
    assert scores != pxfast.score(model, batch((4,)), criterion=name, exclude="2.*")


@pytest.mark.parametrize("name", OTHERS)
def test_masks_that_do_not_fit(name):
    for masks, message in (
        ({"7.weight": torch.ones(3, 3)}, "'7.weight' is not a weight"),
        ({"0.weight": torch.ones(3, 3)}, r"shape \[3, 3\]"),
        ({"0.weight": torch.full((5, 4), 0.5)}, "only 0 and 1"),
    ):
        with pytest.raises(pxfast.errors.MaskError, match=message):
            pxfast.score(nets.mlp(), batch((4,)), criterion=name, masks=masks)


@pytest.mark.parametrize("name", RUNS)
def test_a_parametrized_weight_is_the_one_that_the_forward_uses(name):
    plain = nets.mlp().double()
    model = copy.deepcopy(plain)
    parametrizations.weight_norm(model[0])
    parametrizations.weight_norm(model[2])
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(1.5)
        plain[0].weight.copy_(model[0].weight)
    assert_close(
        pxfast.score(model, batch((4,)), criterion=name),
        pxfast.score(plain, batch((4,)), criterion=name),
    )


def test_a_weight_that_a_hook_computes_is_an_error_that_helps():
    model = nets.mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0])
    data = batch((4,), torch.float32)
    with pytest.raises(pxfast.errors.PxfastError, match=r"'0.weight' is no parameter.*exclude="):
        pxfast.score(model, data, criterion="snip")
    assert list(pxfast.score(model, data, criterion="snip", exclude="0.*")) == [
        "2.weight",
        "4.weight",
    ]


def test_a_shared_weight_is_scored_once_with_both_its_uses():
    model = nets.mlp(sizes=(4, 4, 4, 3)).double()
    model[2].weight = model[0].weight
    scores = pxfast.score(model, batch((4,)), criterion="snip")
    assert list(scores) == ["0.weight", "4.weight"]
    x, y = batch((4,))
    weights = [model[0].weight, model[4].weight]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weights)
    first, last = (
        (gradient * weight).abs().detach()
        for gradient, weight in zip(gradients, weights, strict=True)
    )
    close(scores["0.weight"], first / (first.sum() + last.sum()), CANCELLING)


# ---- data ----


@pytest.mark.parametrize("name", NEEDS_LABELS)
def test_missing_labels_are_named(name):
    x, y = batch((4,), torch.float32)
    for data, number, kind in (
        (x, 1, "Tensor"),
        ((x,), 1, "tuple"),
        ({"x": x}, 1, "dict"),
        ([(x, y), x], 2, "Tensor"),
        ([(x, y), ({"x": x}, None)], 2, "tuple"),
    ):
        message = f"{name} needs labels, but batch {number} .* it is a {kind}.*labels, label"
        with pytest.raises(pxfast.errors.DataError, match=message):
            pxfast.score(nets.mlp(), data, criterion=name)
    with pytest.raises(pxfast.errors.DataError, match="no batches"):
        pxfast.score(nets.mlp(), [], criterion=name)
    with pytest.raises(pxfast.errors.DataError, match="got int"):
        pxfast.score(nets.mlp(), 3, criterion=name)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nets.mlp().double()

    def forward(self, pixels, scale):
        return {"features": pixels, "logits": self.net(pixels * scale)}


@pytest.mark.parametrize("name", RUNS)
def test_dictionaries_and_outputs(name):
    x, y = batch((4,))
    model = ByKeyword()
    ones = torch.ones(6, 1).double()
    scores = pxfast.score(model, {"pixels": x, "scale": ones, "labels": y}, criterion=name)
    if name != "ntk-sap":  # there, the scale is noise, too
        expected = pxfast.score(model.net, (x, y), criterion=name)
        for weight, score in expected.items():
            close(scores[f"net.{weight}"], score, CANCELLING, weight)
    wrapped = [({"pixels": x, "scale": ones}, y)]
    assert scores == pxfast.score(model, wrapped, criterion=name, output="logits")
    with pytest.raises(pxfast.errors.DataError, match="output='scores' selects nothing"):
        pxfast.score(model, wrapped, criterion=name, output="scores")
    with pytest.raises(pxfast.errors.DataError, match="returns no floating-point tensor"):
        pxfast.score(model, wrapped, criterion=name, output=lambda result: None)


def test_a_loss_of_several_outputs_asks_which():
    x, y = batch((4,), torch.float32)
    model = WithUnused()
    model.forward = lambda x: (model.head(model.body(x)), model.auxiliary(model.body(x)))
    with pytest.raises(
        pxfast.errors.DataError, match=r"returns 2 \(of shapes \[6, 3\], \[6, 9\]\)"
    ):
        pxfast.score(model, (x, y), criterion="snip")
    assert list(pxfast.score(model, (x, y), criterion="ntk-sap")) == nets.prunable_names(model)


def test_a_progress_bar_over_batches(capsys):
    data = [batch((4,), torch.float32)] * 2
    pxfast.score(nets.mlp(), data, criterion="snip", progress=True)
    assert "snip" in capsys.readouterr().err
    pxfast.score(nets.mlp(), data, criterion="snip", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", OTHERS)
def test_scores_on_every_device(name, device):
    model = nets.batchnorm().double()
    x, y = batch()
    expected = pxfast.score(model, (x, y), criterion=name)
    scores = pxfast.score(model.to(device), [(x, y)], criterion=name)
    assert all(score.device.type == device.type for score in scores.values())
    assert_close({weight: score.cpu() for weight, score in scores.items()}, expected)
