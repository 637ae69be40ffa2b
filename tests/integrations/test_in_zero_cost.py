from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tolerances import DEEP_NET, close
from torch import nn

import pxfast
from examples.in_zero_cost import OPERATIONS, network
from pxfast.integrations.zero_cost import MEASURES, compute, per_layer, proxy, register

EVERY_OPERATION = (
    "|nor_conv_3x3~0|+|avg_pool_3x3~0|skip_connect~1|+|nor_conv_1x1~0|none~1|nor_conv_3x3~2|"
)
NOTHING = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
NO_CELL_PATH = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def built(architecture: str = EVERY_OPERATION) -> nn.Module:
    torch.manual_seed(0)
    return network(architecture, channels=4)


def layers(net: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv2d, nn.Linear)
    return {f"{name}.weight": m for name, m in net.named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_per_layer_is_the_score_times_one_number(images, criterion):
    net = built()
    scores = pxfast.score(net, images, criterion=criterion)
    found = dict(zip(layers(net), per_layer(net, images, criterion.replace("-", "_")), strict=True))
    scale = found["0.weight"].sum()  # all paths pass the stem, whose scores add up to 1
    for name, tensor in found.items():
        assert tensor.dtype == torch.float64 and tensor.shape == layers(net)[name].weight.shape
        expected = scores.get(name, torch.zeros(tensor.shape)) * scale
        close(tensor, expected, DEEP_NET[torch.float32], name)


def test_the_trace_is_the_bound_of_the_ntk(images):
    net = built()
    bound = pxfast.ntk_trace_bound(net, images)
    total = sum(tensor.sum() for tensor in per_layer(net, images, "px_trace"))
    assert math.isclose(total, bound, rel_tol=DEEP_NET[torch.float32])


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.parametrize("measure", MEASURES)
def test_the_data_counts_also_where_they_cancel_from_scores(images, measure):
    once, twice = (proxy(plain(), data, measure) for data in (images, 2 * images))
    assert math.isclose(twice - once, 2, rel_tol=1e-4)  # x² is four times as large, gates the same
    assert proxy(plain(), images[:3], measure) < once


@pytest.mark.parametrize("measure", MEASURES)
def test_the_scalar_is_the_sum_over_layers(images, measure):
    total = sum(float(tensor.sum()) for tensor in per_layer(built(), images, measure))
    assert math.isclose(2 ** proxy(built(), images, measure), total, rel_tol=1e-12)


def test_a_layer_without_a_path_measures_zero(images):
    net = built(NO_CELL_PATH)  # the last node comes from one that is 0
    found = dict(zip(layers(net), per_layer(net, images), strict=True))
    assert all(not tensor.any() for tensor in found.values())
    assert proxy(net, images) == -math.inf


def test_an_architecture_without_a_path_measures_zero(images):
    for measure in MEASURES:
        assert proxy(built(NOTHING), images, measure) == -math.inf
        assert not any(tensor.any() for tensor in per_layer(built(NOTHING), images, measure))


def test_deep_architectures_keep_a_scalar():
    net = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(300)])
    with torch.no_grad():
        for layer in net:
            layer.weight.fill_(10.0)
    x = torch.ones(2, 8)
    with pytest.raises(
        pxfast.errors.RangeError, match=r"beyond float64; proxy\(\) returns the log"
    ):
        per_layer(net, x)
    # R = Σ_{n,k} h_k g_k with h = 8³⁰⁰, g = 800³⁰⁰; each of the 300 layers sums to R
    expected = math.log2(2 * 8 * 300) + 300 * (math.log2(8) + math.log2(800))
    assert math.isclose(proxy(net, x), expected, rel_tol=1e-6)


def test_the_architecture_is_left_as_it_is(images):
    net = built().train()
    state = copy.deepcopy(net.state_dict())
    for measure in MEASURES:
        per_layer(net, images, measure)
    assert net.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_all_operations_of_the_search_space_are_covered():
    assert all(f"{name}~" in EVERY_OPERATION for name in OPERATIONS)


# ---- the interface of zero-cost-nas and NASLib ---------------------------------------------------


class Registry:
    """Their decorator and the call behind it, written anew: measures by name, each computed on a
    copy of the network in training mode and summed over layers."""

    def __init__(self) -> None:
        self.measures: dict[str, Any] = {}

    def measure(self, name: str, bn: bool = True, copy_net: bool = True, **fixed: Any) -> Any:
        def decorate(function: Any) -> Any:
            def run(net: nn.Module, device: str, *args: Any, **kwargs: Any) -> Any:
                used = net.get_prunable_copy(bn=bn).to(device) if copy_net else net
                return function(used, *args, **kwargs, **fixed)

            self.measures[name] = run
            return function

        return decorate

    def find(self, net: nn.Module, inputs: Any, targets: Any, split_data: int = 1) -> dict:
        loss = nn.functional.cross_entropy
        arrays = {
            name: run(net, "cpu", inputs, targets, loss_fn=loss, split_data=split_data)
            for name, run in self.measures.items()
        }
        return {name: sum(torch.sum(layer) for layer in array) for name, array in arrays.items()}


def with_copies(net: nn.Module) -> nn.Module:
    net.get_prunable_copy = lambda bn: copy.deepcopy(net).train()  # type: ignore[assignment]
    return net


def test_registered_measures_are_found_by_name(images):
    library = Registry()
    register(library.measure)
    net = built()
    found = library.find(with_copies(net), images, torch.zeros(6, dtype=torch.long))
    assert list(found) == list(MEASURES)
    for name, value in found.items():
        assert math.isclose(math.log2(value), proxy(built(), images, name), rel_tol=1e-9)


def test_splitting_the_data_changes_nothing_but_batch_statistics(images):
    for name in MEASURES:
        whole, parts = (compute(name)(plain(), images, split_data=count) for count in (1, 3))
        for one, other in zip(whole, parts, strict=True):
            close(one, other, DEEP_NET[torch.float32], name)


def test_other_modes_are_refused(images):
    with pytest.raises(
        ValueError, match="px: mode must be 'param', one number per weight, got 'ch"
    ):
        compute("px")(built(), images, mode="channel")


def test_an_unknown_measure_is_refused(images):
    with pytest.raises(ValueError, match="expected one of px, px_joint, px_trace, got 'py'"):
        proxy(built(), images, "py")  # type: ignore[arg-type]
