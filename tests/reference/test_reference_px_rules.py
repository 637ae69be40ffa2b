"""Single rules of the literal auxiliary networks, against formulas written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import random_batch, seeded
from tolerances import REORDERED, TINY_REFERENCES, close
from torch import Tensor, nn

from pxfast.reference import px
from pxfast.reference.px_rules import gate

ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(),
    nn.LeakyReLU(0.2),
    nn.PReLU(),
    nn.ELU(),
    nn.SELU(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.Tanh(),
]


def middle(layer: nn.Module, inputs: int = 4, hidden: int = 6) -> nn.Module:
    """`layer` between two linear layers."""
    return seeded(
        lambda: nn.Sequential(nn.Linear(inputs, hidden), layer, nn.Linear(hidden, 2, bias=False)), 0
    ).double()


def joint_of(model: nn.Module, x: Tensor, factors: Tensor) -> float:
    """J of a network made by `middle`: `factors` [N, H] multiply the hidden path sums."""
    hidden = x**2 @ (model[0].weight ** 2).T
    return (hidden * factors @ (model[2].weight ** 2).T).sum().item()


def assert_middle(layer: nn.Module, in_h: Tensor, in_g: Tensor, model: nn.Module, x: Tensor):
    """h, g and J of `middle(layer)` where the layer multiplies by these factors."""
    result = px.evaluate(model, x)
    paths = (x**2).sum(1, keepdim=True) * in_h
    assert (result.s == result.s[0]).all()
    close(result.s[0], paths.sum(), TINY_REFERENCES)
    kernel = (model[0].weight ** 2).sum(1) * in_g @ (model[2].weight ** 2).T
    close(result.g, kernel, TINY_REFERENCES)
    joint = px.evaluate(model, x, criterion="px-joint").total
    assert joint == pytest.approx(joint_of(model, x, in_h * in_g), rel=TINY_REFERENCES)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation(activation):
    model, x = middle(activation), random_batch((4,), 5).double()
    z = model[0](x)
    factor = (activation(z) / z).detach() ** 2
    assert_middle(activation, factor, torch.ones(6).double(), model, x)


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Softplus()], ids=str)
def test_activation_that_is_not_zero_at_zero(activation):
    model, x = middle(activation), random_batch((4,), 5).double()
    z = model[0](x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(activation(z).sum(), z)
    assert_middle(activation, slope**2, torch.ones(6).double(), model, x)


@pytest.mark.parametrize(
    ("phi", "limit"),
    [(F.relu, 0), (F.gelu, 0.5), (F.silu, 0.5), (F.hardswish, 0.5), (torch.tanh, 1), (F.elu, 1)],
)
def test_gate_at_zero_is_its_limit(phi, limit):
    z = torch.tensor([-1e-9, 0.0, 1e-9]).double()
    at_zero = gate(phi, z)[1]
    close(at_zero, torch.tensor(limit).double(), TINY_REFERENCES)
    if phi is not F.relu:
        assert (gate(phi, z) - at_zero).abs().max() < 1e-8  # φ(z)/z is smooth: |φ''(0)| z


def test_layer_norm():
    layer = nn.LayerNorm(6)
    model, x = middle(layer), random_batch((4,), 5).double()
    variance = model[0](x).var(1, correction=0, keepdim=True).detach()
    factor = (1 / (variance + layer.eps)).expand(-1, 6)
    assert_middle(layer, factor, layer.weight.detach() ** 2, model, x)


def test_rms_norm():
    layer = nn.RMSNorm(6, eps=1e-3)
    model, x = middle(layer), random_batch((4,), 5).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
    mean_square = model[0](x).square().mean(1, keepdim=True).detach()
    factor = (1 / (mean_square + 1e-3)).expand(-1, 6)
    assert_middle(layer, factor, layer.weight.detach() ** 2, model, x)


def test_group_norm():
    layer = nn.GroupNorm(3, 6)
    model, x = middle(layer), random_batch((4,), 5).double()
    variance = model[0](x).view(5, 3, 2).var(2, correction=0).detach()
    factor = (1 / (variance + layer.eps)).repeat_interleave(2, 1)
    assert_middle(layer, factor, layer.weight.detach() ** 2, model, x)


class Scaled(nn.Module):
    """A learned scale, a number, a buffer, an embedding that is added, a division."""

    def __init__(self):
        super().__init__()
        self.gamma, self.position = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.register_buffer("constant", torch.randn(6))

    def forward(self, x):
        return 3 * (self.gamma * x + self.position) * self.constant / 2 - 1


def test_constants_and_learned_scales_count_in_g():
    layer = Scaled()
    model, x = middle(layer), random_batch((4,), 5).double()
    squared = (1.5 * layer.gamma * layer.constant).detach() ** 2
    assert_middle(layer, torch.ones(5, 6).double(), squared, model, x)


class HandWrittenNorm(nn.Module):
    """RMS norm with centring, from pow, mean and rsqrt."""

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def test_norm_by_hand_is_a_gate():
    layer = HandWrittenNorm()
    model, x = middle(layer), random_batch((4,), 5).double()
    variance = model[0](x).var(1, correction=0, keepdim=True).detach()
    factor = (1 / (variance + 1e-6)).expand(-1, 6)
    assert_middle(layer, factor, torch.ones(6).double(), model, x)


POOLINGS = [
    nn.MaxPool2d(3, stride=2, padding=1),
    nn.MaxPool2d((3, 2), stride=(1, 2), dilation=(2, 1)),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.MaxPool2d(3, stride=2, ceil_mode=True, padding=1),
    nn.AdaptiveMaxPool2d((3, 2)),
    nn.AdaptiveMaxPool2d(1),
]


@pytest.mark.parametrize("pool", POOLINGS, ids=str)
def test_max_pooling_opens_its_window_in_g(pool):
    """∂(largest)/∂(entry), summed over inputs that make each entry of the window the largest."""
    size = (7, 5)
    x = torch.zeros(35, 1, *size).double()
    x.view(35, 35).fill_diagonal_(1)  # one sample for each place
    windows = pool(x).flatten(1).T  # [out, place]: 1 where the place lies in the window
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), pool).double()
    theta = model[0].weight.item()
    kernel = px.path_kernel(model, (1, *size))
    close(kernel, windows.sum(1) * theta**2, TINY_REFERENCES)


@pytest.mark.parametrize("pool", POOLINGS, ids=str)
def test_max_pooling_follows_the_picked_entry_in_h(pool):
    x = random_batch((2, 7, 5)).double()
    model = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), pool).double()
    z = model[0](x).detach().requires_grad_()
    picked = [torch.autograd.grad(out, z, retain_graph=True)[0] for out in pool(z).sum(0).flatten()]
    paths = (x**2).sum(1, keepdim=True)
    expected = torch.stack([(paths * entry).sum() for entry in picked])
    close(px.path_activation(model, x), expected, TINY_REFERENCES)


SPATIAL = [
    nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular", dilation=2),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(scale_factor=2, mode="bicubic"),
    nn.Upsample(scale_factor=2),
    nn.ZeroPad2d(1),
    nn.ReflectionPad2d(1),
    nn.ConstantPad2d(1, 3.0),
    nn.PixelShuffle(2),
    nn.InstanceNorm2d(4, affine=True),
    nn.GroupNorm(2, 4),
    nn.BatchNorm2d(4),
    nn.Dropout(0.5),
    nn.Identity(),
]


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("layer", SPATIAL, ids=str)
def test_spatial_layers_conserve_the_total(layer, criterion):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), copy.deepcopy(layer), nn.ReLU(), nn.LazyConv2d(2, 2))
    x = random_batch((1, 6, 6)).double()
    model(x.float())
    scores = px.score(model, x, criterion=criterion)
    for name in ("0.weight", "3.weight"):
        assert float(scores[name].sum()) == pytest.approx(1, rel=REORDERED)


def test_bicubic_coefficients_are_absolute():
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.Upsample(scale_factor=2, mode="bicubic")
    )
    basis = torch.eye(16).view(16, 1, 4, 4).double()
    coefficients = model[1](basis).flatten(1)  # [place, out]
    assert (coefficients < 0).any()
    expected = coefficients.abs().sum(0) * model[0].weight.item() ** 2
    close(px.path_kernel(model, (1, 4, 4)), expected, TINY_REFERENCES)


class Block(nn.Module):
    """conv, activation, residual: in place or not."""

    def __init__(self, inplace):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.relu, self.inplace = nn.ReLU(inplace), inplace

    def forward(self, x):
        x = self.a(x)
        y = self.relu(x)  # in place, x is rectified too
        y = self.b(y)
        if self.inplace:
            y += x
            return F.relu_(y).flatten(1)
        return F.relu(y + F.relu(x)).flatten(1)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_operations_in_place_change_what_they_are_applied_to(criterion):
    models = [seeded(lambda inplace=inplace: Block(inplace), 1) for inplace in (True, False)]
    x = random_batch((1, 4, 4))
    scores, expected = (px.score(model, x, criterion=criterion) for model in models)
    for name in expected:
        assert torch.equal(scores[name], expected[name])


class SqueezeExcite(nn.Module):
    """A gated branch: x · hardsigmoid(excite(relu(squeeze(mean x))))."""

    def __init__(self, channels, inplace=False):
        super().__init__()
        self.inplace = inplace
        self.stem = nn.Conv2d(1, channels, 3)
        self.squeeze, self.excite = nn.Linear(channels, 2), nn.Linear(2, channels)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3)))))
        x = x * F.hardsigmoid(gate, inplace=self.inplace)[:, :, None, None]
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_side_rows_carry_the_total_of_the_branch_they_gate(criterion):
    model = seeded(lambda: SqueezeExcite(4), 2).double()
    scores = px.score(
        model, [random_batch((1, 5, 5), seed=seed) for seed in (0, 1)], criterion=criterion
    )
    for name, score in scores.items():  # all of the value branch goes through this gate
        assert float(score.sum()) == pytest.approx(1, rel=REORDERED), name


def test_gate_in_place_has_the_same_side_scores():
    models = [seeded(lambda inplace=inplace: SqueezeExcite(4, inplace), 2) for inplace in (0, 1)]
    expected, scores = (px.score(m, random_batch((1, 5, 5)), criterion="px-joint") for m in models)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_side_scores_of_squeeze_and_excite_by_hand():
    """In g, L = Σ_cri E_cr² S_ri² p_i with p_i the path sums that enter; a score is its share."""
    model = seeded(lambda: SqueezeExcite(4), 2).double()
    scores = px.score(model, random_batch((1, 5, 5)))
    excite, squeeze = model.excite.weight.detach() ** 2, model.squeeze.weight.detach() ** 2
    entering = (model.stem.weight.detach() ** 2).sum((1, 2, 3))
    terms = excite[:, :, None] * squeeze * entering  # [c, r, i]
    close(scores["excite.weight"], terms.sum(2) / terms.sum(), TINY_REFERENCES)
    close(scores["squeeze.weight"], terms.sum(0) / terms.sum(), TINY_REFERENCES)


def test_squeeze_and_excite_gates_the_value_path_in_h():
    model = seeded(lambda: SqueezeExcite(4), 2).double()
    x = random_batch((1, 5, 5)).double()
    z = model.stem(x)
    mean = torch.relu(z).mean((2, 3))
    opened = F.hardsigmoid(model.excite(torch.relu(model.squeeze(mean))))
    windows = F.conv2d(x**2, torch.ones(1, 1, 3, 3).double())
    paths = (windows * (z > 0)).mean((2, 3)) * opened**2
    close(px.path_activation(model, x), paths.sum().expand(3).detach(), TINY_REFERENCES)


class GatedUnit(nn.Module):
    """down(silu(gate(x)) · up(x)), the gate on either side."""

    def __init__(self, gate_first):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.gate_first = gate_first

    def forward(self, x):
        gate, value = F.silu(self.gate(x)), self.up(x)
        return self.down(gate * value if self.gate_first else value * gate)


@pytest.mark.parametrize("gate_first", [True, False])
def test_gated_linear_unit(gate_first):
    """In g, L = Σ W_gate² over all entries: a side score is an entry's square over their sum."""
    model = seeded(lambda: GatedUnit(gate_first), 3).double()
    scores = px.score(model, random_batch((3,)))
    square = (model.gate.weight**2).detach()
    close(scores["gate.weight"], square / square.sum(), TINY_REFERENCES)
    for name in ("up.weight", "down.weight"):
        assert float(scores[name].sum()) == pytest.approx(1, rel=REORDERED)


def test_a_product_of_equals_is_an_error():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(x) * self.b(x)

    with pytest.raises(TypeError, match="which factor"):
        px.score(Bilinear(), random_batch((3,)))


def test_an_unknown_operation_is_an_error_that_names_it():
    class Cumulated(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), Cumulated(), nn.ReLU())

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(TypeError, match=r"no rule for 'cumsum'.*inner\.1.*RULES"):
        px.score(Net(), random_batch((3,)))


def test_an_output_without_a_path_is_an_error():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(torch.ones(x.shape))

    with pytest.raises(ValueError, match="does not depend on the input"):
        px.score(Constant(), random_batch((3,)))


def test_logits_alone_are_the_output_of_a_mapping():
    class Net(nn.Module):
        def __init__(self, alone):
            super().__init__()
            self.a, self.b, self.alone = nn.Linear(3, 3), nn.Linear(3, 3), alone

        def forward(self, x):
            x = self.a(x)
            return self.b(x) if self.alone else {"hidden": x, "logits": self.b(x)}

    models = [seeded(lambda alone=alone: Net(alone), 4) for alone in (True, False)]
    scores, expected = (px.score(model, random_batch((3,))) for model in models)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
