"""Every activation in every spelling, and each gate against float64 at 0, in the tails, between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from middles import Case, behind, check, gate, of
from tolerances import GATE
from torch import Tensor, nn

from pxfast.paths.registry import spellings
from pxfast.reference import px_rules

# canonical form by the name that torch gives the function
CANONICAL: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(),
    "leaky_relu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "celu": nn.CELU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "tanh": nn.Tanh(),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "hardshrink": lambda z: F.hardshrink(z, 0.1),
    "softshrink": lambda z: F.softshrink(z, 0.1),
    "sigmoid": nn.Sigmoid(),
    "hardsigmoid": nn.Hardsigmoid(),
    "softplus": nn.Softplus(),
    "logsigmoid": nn.LogSigmoid(),
    "rrelu": nn.RReLU().eval(),
    "atan": torch.atan,
    "sin": torch.sin,
    "erf": torch.erf,
}


def squared(phi: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: px_rules.gate(phi, z) ** 2


def spelled(name: str) -> dict[str, Case]:
    """Every function of torch, torch.nn.functional and Tensor that computes an activation."""
    rule = gate(squared(CANONICAL[name]))
    rest = (0.1,) if name.endswith("shrink") and name != "tanhshrink" else ()
    return {
        f"{torch.overrides.resolve_name(function)}": of(
            lambda x, function=function: function(x, *rest), (4,), rule
        )
        for function in spellings(name)
    }


def inplace(function: Any, *arguments: Any, name: str) -> dict[str, Case]:
    """`inplace` by keyword and by position."""
    rule = gate(squared(lambda z: function(z, *arguments)))
    return {
        f"{name} in place": of(lambda x: function(x, *arguments, inplace=True), (4,), rule),
        f"{name} in place by position": of(lambda x: function(x, *arguments, True), (4,), rule),
    }


def through(module: Callable[[], nn.Module], **rest: Any) -> Case:
    return Case(module, (4,), **rest)


class OwnPReLU(nn.Module):
    """A learned slope per channel, given to a function or method."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], slopes: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 0.7, slopes))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


class Slopes(nn.PReLU):
    """The same slopes in torch's module."""

    def __init__(self, slopes: int = 4) -> None:
        super().__init__(slopes)
        with torch.no_grad():
            self.weight.copy_(torch.linspace(-0.5, 0.7, slopes))


def clamped(low: float | None, high: float | None) -> Any:
    return gate(squared(lambda z: torch.clamp(z, low, high)))


BOUND = torch.tensor([-0.3, -0.1, -0.2, -0.15])
CASES = {
    **{key: case for name in CANONICAL for key, case in spelled(name).items()},
    **{
        f"{type(module).__name__} module": through(lambda module=module: module)
        for module in CANONICAL.values()
        if isinstance(module, nn.Module)
    },
    **{
        f"{layer.__name__} module in place": through(
            lambda layer=layer: layer(inplace=True), expected=lambda layer=layer: layer()
        )
        for layer in (
            nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU,
            nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.RReLU,
        )
    },
    **inplace(F.relu, name="F.relu"),
    **inplace(F.relu6, name="F.relu6"),
    **inplace(F.hardtanh, -0.2, 0.3, name="F.hardtanh"),
    **inplace(F.leaky_relu, 0.3, name="F.leaky_relu"),
    **inplace(F.elu, 0.7, name="F.elu"),
    **inplace(F.selu, name="F.selu"),
    **inplace(F.celu, 0.7, name="F.celu"),
    **inplace(F.silu, name="F.silu"),
    **inplace(F.mish, name="F.mish"),
    **inplace(F.hardswish, name="F.hardswish"),
    **inplace(F.hardsigmoid, name="F.hardsigmoid"),
    **inplace(F.threshold, 0.1, 0.0, name="F.threshold"),
    **inplace(F.rrelu, 0.2, 0.4, False, name="F.rrelu"),
    "LeakyReLU, steep": through(lambda: nn.LeakyReLU(1.5)),
    "ELU, alpha": through(lambda: nn.ELU(0.3)),
    "CELU, alpha": through(lambda: nn.CELU(0.3)),
    "GELU, tanh": through(lambda: nn.GELU("tanh")),
    "F.gelu, tanh": of(
        lambda x: F.gelu(x, approximate="tanh"), (4,), gate(squared(nn.GELU("tanh")))
    ),
    "Softplus, beta": through(lambda: nn.Softplus(beta=30, threshold=5)),
    "Hardtanh, one-sided": through(lambda: nn.Hardtanh(-0.1, 0.4)),
    "Hardtanh, both positive": through(lambda: nn.Hardtanh(0.05, 0.4)),
    "Hardshrink": through(lambda: nn.Hardshrink(0.1)),
    "Softshrink": through(lambda: nn.Softshrink(0.1)),
    "RReLU": through(lambda: nn.RReLU(0.1, 0.2)),
    "PReLU": through(nn.PReLU),
    "PReLU per channel": through(Slopes),
    "PReLU per channel of images": Case(Slopes, (4, 3, 3)),
    "F.prelu": through(lambda: OwnPReLU(F.prelu), expected=Slopes),
    "torch.prelu": through(lambda: OwnPReLU(torch.prelu), expected=Slopes),
    "Tensor.prelu": through(lambda: OwnPReLU(Tensor.prelu, 1), expected=lambda: Slopes(1)),
    "Threshold": through(lambda: nn.Threshold(0.1, 0.0)),
    "Threshold, a value": through(lambda: nn.Threshold(-0.1, -0.7)),
    "Threshold, not 0 at 0": through(lambda: nn.Threshold(0.1, -0.7)),
    "relu ** 2": of(lambda x: F.relu(x) ** 2, (4,), gate(squared(lambda z: F.relu(z) ** 2))),
    "relu.square": of(
        lambda x: x.view(-1, 2, 2).clamp(min=0).square().flatten(1), (4,),
        gate(squared(lambda z: F.relu(z) ** 2)),
    ),
    "F.threshold_": of(
        lambda x: F.threshold_(x, 0.1, 0.0), (4,), gate(squared(nn.Threshold(0.1, 0.0)))
    ),
    "torch.threshold": of(
        lambda x: torch.threshold(x, 0.1, 0.0), (4,), gate(squared(nn.Threshold(0.1, 0.0)))
    ),
    **{
        f"{torch.overrides.resolve_name(function)}({arguments})": of(
            lambda x, function=function, arguments=arguments: function(x, **arguments),
            (4,),
            clamped(arguments.get("min"), arguments.get("max")),
        )
        for name, arguments in (
            ("clamp", {"min": 0.0}),
            ("clamp", {"min": -0.1, "max": 0.3}),
            ("clip", {"max": 0.1}),
            ("clip", {"min": 0, "max": 6}),
            ("clamp_min", {"min": 0}),
            ("clamp_min", {"min": -0.2}),
            ("clamp_max", {"max": 0.2}),
        )
        for function in spellings(name)
    },
    "clamp by position": of(lambda x: x.clamp(-0.1, 0.3), (4,), clamped(-0.1, 0.3)),
    "clamp, not 0 at 0": of(lambda x: x.clamp(0.1, 0.3), (4,), clamped(0.1, 0.3)),
    "clamp to tensors": of(
        lambda x: torch.clamp(x, min=BOUND.to(x)), (4,), clamped(BOUND.double(), None)
    ),
    **{
        f"{torch.overrides.resolve_name(function)}": of(
            lambda x, function=function: function(x, 0.5, False), shape, gate(torch.ones_like)
        )
        for shape, functions in {
            (4,): (
                F.dropout, torch.dropout, torch.dropout_, F.alpha_dropout, torch.alpha_dropout,
            ),
            (4, 3): (F.dropout1d, torch.feature_dropout),
            (4, 3, 3): (F.dropout2d, F.feature_alpha_dropout, torch.feature_alpha_dropout),
            (4, 2, 2, 2): (F.dropout3d,),
        }.items()
        for function in functions
    },
    "Dropout module": through(lambda: nn.Dropout(0.5)),
    "AlphaDropout module": through(lambda: nn.AlphaDropout(0.5)),
    "F.dropout that insists on training": of(
        lambda x: F.dropout(x, 0.5, True), (4,), gate(torch.ones_like)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    check(CASES[name])


EXACT = {
    **CANONICAL,
    "leaky_relu 0.3": lambda z: F.leaky_relu(z, 0.3),
    "elu 0.3": lambda z: F.elu(z, 0.3),
    "celu 0.3": lambda z: F.celu(z, 0.3),
    "gelu tanh": lambda z: F.gelu(z, approximate="tanh"),
    "softplus 30": lambda z: F.softplus(z, 30.0, 5.0),
    "hardtanh positive": lambda z: F.hardtanh(z, 0.5, 2.0),
    "threshold": lambda z: F.threshold(z, 0.5, 0.0),
    "threshold, a value": lambda z: F.threshold(z, -0.5, -2.0),
    "threshold, not 0 at 0": lambda z: F.threshold(z, 0.5, 2.0),
    "clamp": lambda z: z.clamp(min=0),
    "clamp to relu6": lambda z: z.clamp(0, 6),
    "clamp around 0": lambda z: z.clamp(-1, 1),
    "clamp above 0": lambda z: z.clamp(min=0.5),
    "clamp below 0": lambda z: z.clamp(max=-0.5),
    "prelu": lambda z: F.prelu(z, torch.tensor([0.3], dtype=z.dtype)),
    "rrelu": lambda z: F.rrelu(z, 0.1, 0.3),
}
# where torch's own derivative is another: at the kink in 0, and a sixth rounded to float32
BY_HAND = {
    "clamp": lambda z: (z > 0).double(),
    "clamp to relu6": lambda z: px_rules.gate(F.relu6, z),
    "hardsigmoid": lambda z: (z.abs() < 3).double() / 6,
    "celu 0.3": lambda z: torch.where(z == 0, 1.0, px_rules.gate(lambda z: F.celu(z, 0.3), z)),
}
POINTS = torch.tensor(
    [0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6, 1e-3, -1e-3, 0.2, -0.2, 0.49, -0.49, 0.7, -0.7, 1.5,
     -1.5, 2.9, -2.9, 5.0, -5.0, 9.0, -9.0, 30.0, -30.0, 88.0, -88.0, 1e4, -1e4, 1e15, -1e15]
).double()  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_gates_at_zero_and_in_the_tails(name, dtype):
    """Gate by gate against φ(z)/z (φ'(0) at 0) or φ'(z) of float64."""
    phi, z = EXACT[name], POINTS.to(dtype)
    exact = BY_HAND.get(name, lambda z: px_rules.gate(phi, z))(z.double())
    found = behind(phi, z).double().sqrt()
    error = (found - exact.abs()).abs()
    assert bool(torch.isfinite(error).all())
    off = error > GATE[dtype] * exact.abs().clamp(min=1)
    assert not off.any(), list(
        zip(z[off].tolist(), found[off].tolist(), exact[off].tolist(), strict=True)
    )


@pytest.mark.parametrize("name", EXACT)
def test_every_gate_is_open_in_g(name):
    path = behind(EXACT[name], POINTS, gates=False, squares=True)
    assert torch.equal(path, torch.ones_like(path))


def test_half_precision_gates_are_computed_in_float32():
    """The gate of a bfloat16 z is that of the rounded z, not a ratio of rounded numbers."""
    from pxfast.paths.network import Network
    from pxfast.paths.pathsum import PathSum
    from pxfast.paths.tensor import Interpreter
    from pxfast.paths.weights import Weights

    z = torch.linspace(-4, 4, 41).bfloat16()
    weights = Weights(nn.Module(), {}, lambda name: False)
    net = Network(weights, True, False, True, False, "running", z.device, torch.float32)
    with torch.no_grad(), Interpreter(net):
        path = F.gelu(net.tensor(z, PathSum(torch.ones(41)))).path
    exact = px_rules.gate(F.gelu, z.double()) ** 2
    assert path.mantissa.dtype == torch.float32
    assert bool(((path.mantissa.double() - exact).abs() <= 4 * GATE[torch.float32]).all())
