"""The literal auxiliary networks against the explicit sum over paths, and their identities."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerances import REORDERED, TINY_REFERENCES, close
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from pxfast.reference import paths, px
from pxfast.reference.units import Concat, Sum

CRITERIA = ["px", "px-joint"]
ENUMERABLE = [name for name in nets.NETS if name != "functional"]
BIAS_FREE = ["mlp", "conv", "residual", "concat", "maxpool", "leaky", "depthwise"]


def assert_entries(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert that every entry agrees: no term is negative, so none is small by cancellation."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)


def assert_is_sum_over_paths(model, x, masks=None, batchnorm="running"):
    """s, g, R, J and both scores equal the sums over the explicit list of paths."""
    sums = paths.sums_over_paths(model, x, masks, batchnorm)
    separate = px.evaluate(model, x, masks=masks, batchnorm=batchnorm)
    assert_entries(separate.s, sums.s, TINY_REFERENCES)
    assert_entries(separate.g, sums.g, TINY_REFERENCES)
    assert separate.total == pytest.approx(sums.R, rel=TINY_REFERENCES, abs=0)
    joint = px.evaluate(model, x, criterion="px-joint", masks=masks, batchnorm=batchnorm)
    assert joint.total == pytest.approx(sums.J, rel=TINY_REFERENCES, abs=0)
    for scores, expected in ((separate.scores, sums.px), (joint.scores, sums.joint)):
        assert set(expected) <= set(scores)
        for name, score in scores.items():  # without a path behind or before it: 0
            by_paths = expected.get(name, torch.zeros_like(score))
            assert_entries(score, by_paths, TINY_REFERENCES)


@pytest.mark.parametrize("density", [None, 0.6])
@pytest.mark.parametrize("name", ENUMERABLE)
def test_is_the_sum_over_paths(name, density):
    net = nets.NETS[name]
    model, x = net.build(seed=2), nets.random_batch(net.shape, seed=2)
    assert_is_sum_over_paths(model, x, nets.random_masks(model, density, 2) if density else None)


@pytest.mark.parametrize("track_running_stats", [True, False])
def test_batch_statistics_are_those_of_the_paths(track_running_stats):
    model = nets.batchnorm(3, track_running_stats=track_running_stats)
    x = nets.random_batch((1, 4, 4), samples=4)
    assert_is_sum_over_paths(model, x, nets.random_masks(model, 0.7), batchnorm="data")


@st.composite
def vector_networks(draw) -> nn.Module:
    """A random network for [N, 3]: linear layers, activations, residuals, concatenations."""
    width, layers = 3, []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "residual", "concat"]))
        out = width if kind == "residual" else draw(st.integers(1, 3))
        linear = nn.Linear(width, out, bias=draw(st.booleans()))
        if kind == "plain":
            layers.append(linear)
        elif kind == "residual":
            layers.append(Sum(nn.Sequential(linear, nn.ReLU()), nn.Identity()))
        else:
            layers.append(Concat(linear, nn.Identity()))
            out += width
        width = out
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(width))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU()])))
    return nn.Sequential(*layers, nn.Linear(width, 2))


@st.composite
def image_networks(draw) -> nn.Module:
    """A random network for [N, 1, 3, 3]: a convolution, a pooling, a residual convolution."""
    channels = draw(st.integers(1, 2))
    pooling = [
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, stride=2, padding=1),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Identity(),
    ]
    return nn.Sequential(
        nn.Conv2d(
            1,
            channels,
            kernel_size=draw(st.integers(1, 2)),
            stride=draw(st.integers(1, 2)),
            padding=draw(st.integers(0, 1)),
            bias=draw(st.booleans()),
        ),
        draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.2), nn.Identity()])),
        draw(st.sampled_from(pooling)),
        Sum(
            nn.Conv2d(
                channels,
                channels,
                kernel_size=(1, 3),
                padding=(0, 1),
                groups=draw(st.sampled_from([1, channels])),
            ),
            nn.Identity(),
        ),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 2, bias=False),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    drawn=st.one_of(
        st.tuples(vector_networks(), st.just((3,))),
        st.tuples(image_networks(), st.just((1, 3, 3))),
    ),
    seed=st.integers(0, 100),
    density=st.sampled_from([0.5, 1.0]),
)
def test_random_networks_are_the_sum_over_paths(drawn, seed, density):
    blueprint, shape = drawn
    model = nets.seeded(lambda: reinitialised(blueprint), seed)
    masks = nets.random_masks(model, density, seed)
    x = nets.random_batch(shape, samples=2, seed=seed)
    try:
        paths.sums_over_paths(model, x, masks)
    except ValueError:  # R = 0: nothing to compare
        assume(False)
    assert_is_sum_over_paths(model, x, masks)


def reinitialised(blueprint: nn.Module) -> nn.Module:
    """Draw new weights from the generator that is seeded now."""
    model = copy.deepcopy(blueprint)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


@pytest.mark.parametrize("criterion", CRITERIA)
def test_functions_methods_and_operators_score_as_modules_do(criterion):
    """`Functional` written as modules, its constants 0.5 and 1/2 folded into the weights."""
    model, x = nets.functional(1), nets.random_batch((1, 4, 4))
    modules = nn.Sequential(
        copy.deepcopy(model.stem),
        nn.ReLU(),
        Sum(nn.Sequential(copy.deepcopy(model.body), nn.LeakyReLU(0.1)), nn.Identity()),
        Concat(nn.MaxPool2d(2), nn.AvgPool2d(2)),
        nn.ReLU(),
        nn.Flatten(),
        copy.deepcopy(model.head),
    )
    with torch.no_grad():
        for layer in (modules[2][0][0], modules[6]):
            layer.weight.mul_(0.5)
            layer.bias.mul_(0.5)
    expected = paths.score_by_paths(modules, x, criterion=criterion)
    scores = px.score(model, x, criterion=criterion)
    for actual, name in zip(scores.values(), expected, strict=True):
        assert_entries(actual, expected[name], TINY_REFERENCES)


CUTS = {  # sets of weights that every path crosses exactly once
    "mlp": [["0.weight"], ["2.weight"], ["4.weight"]],
    "conv": [["0.weight"], ["2.weight"], ["5.weight"]],
    "residual": [["0.weight"], ["3.0.weight", "3.1.weight"], ["7.weight"]],
    "concat": [["0.weight"], ["4.weight"]],
    "batchnorm": [["0.weight"], ["3.weight"], ["8.weight"], ["11.weight"]],
    "maxpool": [["0.weight"], ["2.weight"], ["6.weight"]],
    "leaky": [["0.weight"], ["2.weight"], ["4.weight"]],
    "depthwise": [["0.weight"], ["2.weight"], ["4.weight"], ["7.weight"]],
    "functional": [["stem.weight"], ["head.weight"]],
}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", nets.NETS)
def test_every_cut_totals_one(name, criterion):
    net = nets.NETS[name]
    model, x = net.build(seed=3), nets.random_batch(net.shape)
    scores = px.score(model, x, criterion=criterion, masks=nets.random_masks(model, 0.7, 3))
    for cut in CUTS[name]:
        total = sum(float(scores[weight].sum()) for weight in cut)
        assert total == pytest.approx(1, rel=REORDERED, abs=0), cut
    assert all((score >= 0).all() for score in scores.values())


@pytest.mark.parametrize("name", BIAS_FREE)
def test_bound_is_not_below_the_exact_trace(name):
    net = nets.NETS[name]
    for seed in range(2):
        model, x = net.build(seed=seed, bias=False), nets.random_batch(net.shape, seed=seed)
        for masks in (None, nets.random_masks(model, 0.6, seed)):
            weights = nets.prunable_names(model)
            exact = trace_over(model, x, masks, weights)
            bound = px.ntk_trace_bound(model, x, masks)
            assert exact <= bound * (1 + REORDERED)


def trace_over(model, x, masks, weights):
    """The exact trace over `weights` only: everything else becomes a buffer."""
    model = copy.deepcopy(model)
    for name, parameter in list(model.named_parameters()):
        if name not in weights:
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            delattr(module, attribute)
            module.register_buffer(attribute, parameter.detach())
    return paths.exact_ntk_trace(model, x, masks)


def test_bound_is_exact_for_a_single_path():
    """One unit a layer: |∂f/∂θ_j|² = a² x² Π_{i≠j} θ_i², and Cauchy-Schwarz has nothing to lose."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(4)))
    x = torch.tensor([[0.7]])
    exact = paths.exact_ntk_trace(model, x)
    assert px.ntk_trace_bound(model, x) == pytest.approx(exact, rel=REORDERED, abs=0)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_batches_add_up_and_duplicates_change_nothing(criterion):
    model, x = nets.residual(4), nets.random_batch((1, 4, 4), samples=4)
    whole = px.score(model, x, criterion=criterion)
    splits = [list(x.split(1)), [(x[:3], "labels"), x[3:]], torch.cat([x, x])]
    for data in splits:
        for name, score in px.score(model, data, criterion=criterion).items():
            close(score, whole[name], REORDERED, name)


def test_data_cancels_in_the_dense_round_of_px_only():
    model = nets.conv(5)
    one, other = (nets.random_batch((1, 5, 5), seed=seed) for seed in (1, 2))
    for name, score in px.score(model, one).items():
        close(px.score(model, other)[name], score, REORDERED, name)
    joint = [px.score(model, x, criterion="px-joint")["0.weight"] for x in (one, other)]
    assert not torch.allclose(*joint)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rescaling_a_hidden_channel_changes_nothing(criterion):
    model, x = nets.conv(6), nets.random_batch((1, 5, 5))
    expected = px.score(model, x, criterion=criterion)
    with torch.no_grad():
        model[0].weight[1] *= 8
        model[0].bias[1] *= 8
        model[2].weight[:, 1] /= 8
    for name, score in px.score(model, x, criterion=criterion).items():
        assert torch.equal(score, expected[name])


def masked_by_prune(model, masks):
    for name, mask in masks.items():
        prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", mask)
    model(nets.random_batch((1, 5, 5)))  # leaves computed weights in the modules
    return model, None


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def masked_by_parametrization(model, masks):
    for name, mask in masks.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        parametrize.register_parametrization(layer, "weight", Masked(mask))
    return model, None


def zeroed_and_given(model, masks):
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model, masks


def half_carried_half_given(model, masks):
    first, *others = masks
    model, _ = masked_by_prune(model, {first: masks[first]})
    return model, {name: masks[name] for name in others}


def two_masks_on_every_weight(model, masks):
    """Each keeps more than their product, which is `masks`."""
    coin = nets.random_masks(model, 0.5, seed=99)
    model, _ = masked_by_prune(model, {name: mask | coin[name] for name, mask in masks.items()})
    return model, {name: mask | ~coin[name] for name, mask in masks.items()}


FORMS = [
    masked_by_prune,
    masked_by_parametrization,
    zeroed_and_given,
    half_carried_half_given,
    two_masks_on_every_weight,
]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_mask_gives_the_same_scores(form, criterion):
    model, x = nets.maxpool(7), nets.random_batch((1, 5, 5))
    masks = nets.random_masks(model, 0.6, 7)
    expected = px.score(model, x, criterion=criterion, masks=masks)
    changed, given_masks = form(nets.maxpool(7), masks)
    scores = px.score(changed, x, criterion=criterion, masks=given_masks)
    assert list(scores) == list(expected)
    for name, score in scores.items():
        assert torch.equal(score, expected[name])
        assert (score[~masks[name]] == 0).all()


class MultipliedByBuffer(nn.Linear):
    """A layer of the user's that multiplies its weight by a 0/1 buffer."""

    def __init__(self, layer, mask):
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.register_buffer("mask", mask.float())

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


def test_a_buffer_that_multiplies_the_weight_is_a_mask():
    model, x = nets.mlp(8), nets.random_batch((4,))
    masks = nets.random_masks(model, 0.6, 8)
    expected = px.score(model, x, masks=masks)
    for index in (0, 2, 4):
        model[index] = MultipliedByBuffer(model[index], masks[f"{index}.weight"])
    for name, score in px.score(model, x).items():
        assert torch.equal(score, expected[name])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_tied_weights_have_the_score_of_both_places(criterion):
    torch.manual_seed(1)  # some draws close every path
    layer = nn.Linear(3, 3)
    model, x = nn.Sequential(layer, nn.ReLU(), layer), nets.random_batch((3,))
    untied = nn.Sequential(layer, nn.ReLU(), copy.deepcopy(layer))
    places = paths.score_by_paths(untied, x, criterion=criterion)
    (score,) = px.score(model, x, criterion=criterion).values()
    assert_entries(score, places["0.weight"] + places["2.weight"], TINY_REFERENCES)


def test_weights_that_the_output_never_uses_are_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    assert list(px.score(Net(), torch.ones(1, 2))) == ["used.weight"]


def test_the_model_is_untouched():
    model, _ = masked_by_prune(nets.maxpool(9), nets.random_masks(nets.maxpool(9), 0.6))
    model.train()
    before = copy.deepcopy(model.state_dict())
    px.score(model, nets.random_batch((1, 5, 5)), criterion="px-joint")
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_arguments_are_errors():
    model, x = nets.mlp(), nets.random_batch((4,))
    for arguments, message in [
        ({"criterion": "p"}, "'px' or 'px-joint'"),
        ({"batchnorm": "train"}, "'running' or 'data'"),
        ({"masks": {"9.weight": torch.ones(1)}}, "no such parameter"),
        ({"masks": {"0.weight": torch.ones(4, 5)}}, r"expected \[5, 4\], got \[4, 5\]"),
        ({"masks": {"2.weight": torch.zeros(4, 5)}}, "sum over all paths is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            px.score(model, x, **arguments)
    with pytest.raises(ValueError, match="no batch"):
        px.score(model, [])
