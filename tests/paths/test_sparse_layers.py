"""Layers that keep few weights take value and path through them in one pass."""

from __future__ import annotations

from dataclasses import replace

import nets
import pytest
import torch
import torch.nn.functional as F
from backends import instruction_set, instruction_sets, need
from tolerances import DEEP_NET, close
from torch import nn

import pxfast
from pxfast import _native, models, ops
from pxfast.paths import pathsum
from pxfast.paths.pathsum import PathSum
from pxfast.paths.rules import convolution
from pxfast.paths.rules.geometry import Convolution
from pxfast.paths.rules.sparse import SparseConvolution
from pxfast.paths.weight import Weight
from pxfast.reference import px

F32, F64 = torch.float32, torch.float64


@pytest.fixture(scope="module", autouse=True)
def kernels():
    need("cpu", _native.problem)


@pytest.fixture
def calls(monkeypatch):
    """What the op was called with."""
    seen = []

    def recorded(*args, **kwargs):
        seen.append(args)
        return original(*args, **kwargs)

    original = ops.sparse_dual_conv2d
    monkeypatch.setattr(ops, "sparse_dual_conv2d", recorded)
    return seen


def geometries():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 8, (3, 1), stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding="same", dilation=2), nn.GELU(),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_scores_are_those_of_the_reference(calls, criterion, dtype):
    torch.manual_seed(5)
    x = torch.randn(3, 2, 20, 17, dtype=F64)
    model = geometries().double()
    model(x)
    model.eval()
    masks = nets.random_masks(model, 0.17)
    expected = px.score(model, x, criterion=criterion, masks=masks)
    scores = pxfast.score(model.to(dtype), x.to(dtype), criterion=criterion, masks=masks)
    assert len(calls) >= 4
    assert list(scores) == list(expected)
    for name, values in expected.items():
        close(scores[name], values, DEEP_NET[dtype], name)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_a_deep_network_scores_as_with_dense_layers(calls, criterion, monkeypatch):
    torch.manual_seed(5)
    model, x = models.resnet20().eval(), torch.randn(4, 3, 16, 16)
    masks = nets.random_masks(model, 0.15)
    sparse = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert calls
    monkeypatch.setattr(convolution, "sparse_convolution_pays", lambda *_: False)
    calls.clear()
    dense = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert not calls
    for name, values in dense.items():
        close(sparse[name], values, DEEP_NET[F32], name)


def test_where_it_does_not_pay_layers_stay_dense(calls):
    model, x = geometries(), torch.randn(3, 2, 20, 17)
    model(x)
    model.eval()
    with instruction_set("base"):
        pxfast.score(model, x, masks=nets.random_masks(model, 0.6))
    pxfast.score(model[:2], x[..., :8, :8], masks=nets.random_masks(model[:2], 0.6))
    pxfast.score(model, x, masks=nets.random_masks(model, 0.2), dtype=torch.bfloat16)
    assert not calls
    channels_last = x.contiguous(memory_format=torch.channels_last)
    pxfast.score(model[:2], channels_last, masks=nets.random_masks(model[:2], 0.2))
    assert not calls


def test_when_few_weights_are_few_enough():
    weight = torch.ones(8, 8, 3, 3)
    large, some, few = (torch.ones(n, 8, 13, 7) for n in (5, 4, 1))
    for isa in instruction_sets():
        with instruction_set(isa):
            assert ops.sparse_dual_conv2d_pays(large, weight, 0.4)
            assert ops.sparse_dual_conv2d_pays(large, weight, 0.41) == (isa == "avx512")
            assert ops.sparse_dual_conv2d_pays(large, weight, 1.0) == (isa == "avx512")
            assert ops.sparse_dual_conv2d_pays(some, weight, 0.5) == (isa == "avx512")
            assert not ops.sparse_dual_conv2d_pays(some, weight, 0.51)
            assert ops.sparse_dual_conv2d_pays(few, weight, 0.1)
            assert not ops.sparse_dual_conv2d_pays(few, weight, 0.11)
            assert not ops.sparse_dual_conv2d_pays(large.bfloat16(), weight, 0.1)
            assert not ops.sparse_dual_conv2d_pays(large.to("meta"), weight, 0.1)


# ---- what follows a convolution ends it


class Residual(nn.Module):
    """A block with every end: BatchNorm and ReLU, a sum in place behind BatchNorm, a sum whose
    other branch is a convolution itself; and results that are read before they are continued."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.down, self.bn3 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=False)

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        x = F.relu_(out)
        between = self.conv1(x)
        out = F.relu(self.bn1(between))
        out = self.bn2(self.conv2(out)) + self.bn3(self.down(x))
        return F.relu(out, inplace=True) + 0.5 * between


def residual_network(dtype=F64):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), Residual(), nn.Flatten(), nn.LazyLinear(3)).to(dtype)
    x = torch.randn(12, 2, 12, 11, dtype=dtype)
    for _ in range(3):
        model(x + 1)  # running statistics that are not 0 and 1
    return model.eval(), x


@pytest.fixture
def ends(monkeypatch):
    """The ends that the op was called with: scale, residual, ReLU."""
    seen = []

    def recorded(*args, scale=None, residual=None, relu=False, **kwargs):
        seen.append((scale is not None, residual is not None, relu))
        return original(*args, scale=scale, residual=residual, relu=relu, **kwargs)

    original = ops.sparse_dual_conv2d
    monkeypatch.setattr(ops, "sparse_dual_conv2d", recorded)
    return seen


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_scores_behind_fused_ends_are_those_of_the_reference(ends, dtype, density):
    model, x = residual_network()
    masks = nets.random_masks(model, density)
    expected = px.score(model, x, masks=masks)
    ends.clear()
    scores = pxfast.score(model.to(dtype), x.to(dtype), masks=masks)
    for name, values in expected.items():
        close(scores[name], values, DEEP_NET[dtype], name)
    whole, relu, plain = (True, True, True), (True, False, True), (False, False, False)
    assert ends.count(whole) == 2 and ends.count(relu) == 2
    assert plain in ends  # what is read on its own


def test_exponents_that_differ_are_aligned_before_the_sum(ends, monkeypatch):
    model, x = residual_network()
    masks = nets.random_masks(model, 0.4)
    expected = pxfast.score(model, x, masks=masks)
    ends.clear()
    monkeypatch.setattr(pathsum, "SLACK", 0)  # every layer counts powers of two in its exponent
    for name, values in pxfast.score(model, x, masks=masks).items():
        close(values, expected[name], DEEP_NET[F64], name)
    assert ends.count((True, True, True)) == 2


@pytest.mark.parametrize(("path", "other"), [(3, -2), (-2, 3)])
def test_a_residual_of_another_exponent(path, other):
    theta, mask, x = torch.randn(4, 2, 1, 1), torch.ones(4, 2, 1, 1).bool(), torch.rand(1, 2, 5, 5)
    weight = Weight(None, None, theta, mask)  # type: ignore[arg-type]
    geometry = Convolution((1, 1), (0, 0), (1, 1), False, (0, 0), 1)
    work = SparseConvolution(x, PathSum(x, path), weight, geometry, None)
    added = torch.rand(1, 4, 5, 5)
    _, plain = work.run()
    _, summed = replace(work, residual=(added, PathSum(added, other))).run()
    expected = plain.at_exponent(0) + added * 2.0**other
    close(summed.at_exponent(0), expected, DEEP_NET[F32])


def test_resnet20_ends_in_its_convolutions(ends):
    torch.manual_seed(5)
    model, x = models.resnet20().eval(), torch.randn(4, 3, 16, 16)
    pxfast.score(model, x, masks=nets.random_masks(model, 0.07))
    assert ends.count((True, True, True)) == 9  # blocks
    assert ends.count((True, False, True)) == 10


def test_batch_statistics_and_hooks_read_what_the_convolution_gives(ends):
    model, x = residual_network()
    masks = nets.random_masks(model, 0.2)
    pxfast.score(model, x, masks=masks, batchnorm="data")
    assert not any(scale for scale, _, _ in ends)
    plain = pxfast.score(model, x, masks=masks)
    seen = []
    block = model[1]
    block.conv2.register_forward_hook(lambda _, __, out: seen.append((out.sum().item(), out.shape)))
    block.bn2.register_forward_hook(lambda _, __, out: seen.append((out.sum().item(), out.shape)))
    hooked = pxfast.score(model, x, masks=masks)
    with torch.no_grad():
        masked = {name: p * masks[name] for name, p in model.named_parameters() if name in masks}
        got = [seen.copy(), seen.clear()][0]
        torch.func.functional_call(model, masked, (x,))
    values = [pair for pair in got if pair[1][0] == 12]
    assert len(values) >= len(seen) == 4
    for (value, shape), (expected, other) in zip(values[-4:], seen, strict=True):
        assert shape == other and abs(value - expected) <= 1e-9 * max(1, abs(expected))
    for name, values in plain.items():
        close(hooked[name], values, DEEP_NET[F64], name)


class ChangesItsInput(nn.Module):
    """A convolution whose input is changed in place before its result is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.bn = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        after = self.bn(self.conv(x))
        x.relu_()
        return self.last(F.relu(after + x).mean((2, 3)))


def test_an_input_that_changes_in_place_is_read_before(ends):
    torch.manual_seed(4)
    model, x = ChangesItsInput().double().eval(), torch.randn(3, 2, 12, 11, dtype=F64)
    masks = nets.random_masks(model, 0.3)
    expected = px.score(model, x, masks=masks)
    ends.clear()
    for name, values in pxfast.score(model, x, masks=masks).items():
        close(values, expected[name], DEEP_NET[F64], name)
    assert (True, False, False) in ends


# ---- linear layers


@pytest.fixture
def linear_calls(monkeypatch):
    """What sparse_dual_linear was called with."""
    seen = []

    def recorded(*args, **kwargs):
        seen.append(args)
        return original(*args, **kwargs)

    original = ops.sparse_dual_linear
    monkeypatch.setattr(ops, "sparse_dual_linear", recorded)
    return seen


def layers_of_tokens():
    return nn.Sequential(
        nn.Linear(6, 20), nn.LayerNorm(20), nn.GELU(),
        nn.Linear(20, 24, bias=False), nn.ReLU(),
        nn.TransformerEncoderLayer(24, 3, 36, batch_first=True, norm_first=True, dropout=0.0),
        nn.Linear(24, 3),
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_linear_layers_score_as_the_reference(linear_calls, monkeypatch, criterion, pays, dtype):
    torch.manual_seed(5)
    model, x = layers_of_tokens().double().eval(), torch.randn(3, 43, 6, dtype=F64)
    masks = nets.random_masks(model, 0.2)
    expected = px.score(model, x, criterion=criterion, masks=masks)
    monkeypatch.setattr(ops, "sparse_dual_linear_pays", lambda *_: pays)
    scores = pxfast.score(model.to(dtype), x.to(dtype), criterion=criterion, masks=masks)
    assert bool(linear_calls) == (pays and criterion == "px")
    assert list(scores) == list(expected)
    for name, values in expected.items():
        close(scores[name], values, DEEP_NET[dtype], name)


def test_a_linear_network_scores_as_with_dense_layers(linear_calls, monkeypatch):
    """With the rule as it is, and two batches that meet the same masks."""
    torch.manual_seed(5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model = nn.Sequential(
        nn.Linear(8, 304), nn.ReLU(), nn.Linear(304, 304), nn.ReLU(), nn.Linear(304, 304),
        nn.GELU(), nn.Linear(304, 5),
    )  # fmt: skip
    batches, masks = list(torch.randn(2, 2, 130, 8)), nets.random_masks(model, 0.04)
    sparse = pxfast.score(model, batches, masks=masks)
    assert len(linear_calls) >= 4
    assert {tuple(weight.shape) for _, _, weight, *_ in linear_calls} == {(304, 304)}
    monkeypatch.setattr(ops, "sparse_dual_linear_pays", lambda *_: False)
    linear_calls.clear()
    dense = pxfast.score(model, batches, masks=masks)
    assert not linear_calls
    for name, values in dense.items():
        close(sparse[name], values, DEEP_NET[F32], name)


def test_linear_layers_stay_dense_where_a_pass_is_another(linear_calls, monkeypatch):
    """Under autocast, in the joint network, and where the path sum is constant."""
    monkeypatch.setattr(ops, "sparse_dual_linear_pays", lambda *_: True)
    model, x = layers_of_tokens().eval(), torch.randn(3, 43, 6)
    masks = nets.random_masks(model, 0.2)
    pxfast.score(model, x, masks=masks, dtype=torch.bfloat16)
    pxfast.score(model, x, masks=masks, criterion="px-joint")
    narrow = nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 24))  # one sum for all 20
    pxfast.score(narrow, x, masks={"1.weight": torch.rand(24, 20) < 0.2})
    assert not linear_calls


def test_a_path_sum_of_its_own_is_normalised_in_place():
    mantissa = torch.full((2, 3), 2.0**40)
    path = PathSum(mantissa, 1)
    elsewhere = path.normalised()
    assert mantissa[0, 0] == 2.0**40  # others may have it
    here = path.normalised(inplace=True)
    assert here.mantissa.data_ptr() == mantissa.data_ptr()
    assert here.exponent == elsewhere.exponent == 42
    assert torch.equal(here.mantissa, elsewhere.mantissa)


def test_samples_of_zeros_do_not_hide_what_the_others_have():
    """The first samples tell the size of all, unless they are 0."""
    mantissa = torch.zeros(16, 3)
    mantissa[-1] = 2.0**100
    path = PathSum(mantissa, 0).normalised()
    assert path.exponent == 101 and float(path.mantissa.amax()) == 0.5
