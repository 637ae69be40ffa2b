"""Sums over channels that are taken with the gate, and activations that are read whole besides."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast import ops
from pxfast.errors import NoRuleError
from pxfast.paths.pathsum import PathSum
from pxfast.paths.rules.activation import summed_gate
from pxfast.reference import px

USES = {
    "convolved only": lambda net, x: net.second(x),
    "residual": lambda net, x: net.second(x).add_(x),
    "depthwise": lambda net, x: net.second(x) + net.depthwise(x),
    "pooled": lambda net, x: net.second(x) + F.max_pool2d(x, 3, 1, 1),
    "concatenated": lambda net, x: net.second(torch.cat([x, x], 1)[:, 3:9]),
    "scaled in place before": lambda net, x: net.second(x.mul_(0.5)),
    "twice": lambda net, x: net.second(x) + net.third(net.activation(x)),
}


class Net(nn.Module):
    """An activation in the middle, whose result is used in one of several ways."""

    def __init__(self, activation: nn.Module, use: str):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.third = nn.Conv2d(6, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.activation, self.use = activation, use
        self.head = nn.Conv2d(6, 4, 1)  # whose outputs differ from place to place: data count

    def forward(self, x: Tensor) -> Tensor:
        return self.head(USES[self.use](self, self.activation(self.first(x))))


@pytest.mark.filterwarnings("ignore:the output never uses these weights")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2, inplace=True), nn.LeakyReLU(-0.2)],
    ids=str,
)
def test_scores_are_those_of_the_reference(activation: nn.Module, use: str) -> None:
    torch.manual_seed(0)
    model, x = Net(activation, use).double().eval(), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    expected = px.score(model, x)
    for name, scores in pxfast.score(model, x).items():
        close(scores, expected[name], SMALL_NET[torch.float64])


@pytest.mark.filterwarnings("ignore:the output never uses these weights")
@pytest.mark.parametrize("masked", [False, True])
def test_sums_are_taken_where_no_weight_is_masked(masked: bool) -> None:
    torch.manual_seed(0)
    model, x = Net(nn.ReLU(), "convolved only").eval(), torch.randn(5, 3, 8, 8)
    masks = {"head.weight": torch.rand_like(model.head.weight) < 0.7} if masked else None
    with mock.patch.object(ops, "gate", wraps=ops.gate) as gate:
        pxfast.score(model, x, masks=masks)
    assert gate.call_args.kwargs.get("over_channels", False) != masked


def test_a_value_changed_behind_the_sums_is_an_error() -> None:
    z, path = torch.randn(1, 2, 3), PathSum(torch.rand(1, 1, 3))
    value, gated = summed_gate(z, path, ("relu", 0.0, 0.0), inplace=True)
    assert torch.equal(gated.mantissa, ops.gated(value, path.mantissa, "relu"))
    value, gated = summed_gate(z, path, ("relu", 0.0, 0.0), inplace=True)
    value.mul_(2)
    with pytest.raises(NoRuleError, match="read after an in-place operation"):
        gated.mantissa.sum()
