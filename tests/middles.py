"""One operation between two linear layers: the network that every rule is tested with.

A `Case` is an operation, the shape of its input and what its scores must be: those of the literal
reference on the same network, on an equivalent one, or those of a `Rule`, the operation's three
columns (h, g, joint) written out by hand. `check` scores the network in float64 with path sums that
are constant along channels (only the last layer masked), with full ones (every layer masked) and
without masks, once with the data pass skipped and once with it forced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from nets import NORMS, random_batch, random_masks, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.paths.network import Network
from pxfast.paths.passes import Passes
from pxfast.paths.pathsum import PathSum
from pxfast.paths.tensor import Interpreter
from pxfast.paths.weights import Weights
from pxfast.reference import px

Operation = Callable[..., Any]
CONVOLUTIONS = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}


class Rule(NamedTuple):
    """What an operation does to path sums [N, *shape]; z [N, *shape] is the operation's input."""

    h: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    joint: Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """An operation (built anew for every network), its input's shape without samples, and what its
    scores must be: None for the reference's, another operation for the reference's on that one, or
    a `Rule`."""

    build: Callable[[], Operation]
    shape: tuple[int, ...] = (4,)
    expected: Callable[[], Operation] | Rule | None = None
    options: Mapping[str, Any] = {}


def of(operation: Operation, *rest: Any, **named: Any) -> Case:
    """The case of an operation without weights and state."""
    return Case(lambda: operation, *rest, **named)


class Middle(nn.Module):
    """A linear layer or a convolution, the operation, a linear layer."""

    def __init__(self, operation: Operation, shape: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        if len(shape) == 1:
            self.first: nn.Module = nn.Linear(3, shape[0])
            self.inputs: tuple[int, ...] = (3,)
        else:
            layer = CONVOLUTIONS[len(shape)]
            self.first = layer(2, shape[0], kernel, padding=kernel // 2)
            self.inputs = (2, *shape[1:])
        self.operation = operation
        with torch.no_grad():
            width = torch.flatten(operation(torch.rand(2, *shape)), 1).shape[1]
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.flatten(self.operation(self.first(x)), 1))


def network(build: Callable[[], Operation], shape: tuple[int, ...], kernel: int) -> Middle:
    """The network around an operation, in float64; the same weights for every operation."""
    made: list[nn.Module] = []

    def build_all() -> nn.Module:
        operation = build()
        if isinstance(operation, nn.Module):
            operation.eval()
        state = torch.get_rng_state()
        torch.manual_seed(1)
        made.append(Middle(operation, shape, kernel))
        torch.set_rng_state(state)
        return made[0]

    return seeded(build_all, 3).double()


# (criterion, which layers are masked, kernel of the first layer: with 1, path sums that start
# constant over space remain so)
VARIANTS = (
    ("px", "last", 1), ("px", "none", 3), ("px", "all", 3), ("px-joint", "none", 1),
    ("px-joint", "all", 3),
)  # fmt: skip


def check(case: Case) -> None:
    """Compare the scores of a case with what they must be, for both criteria and all kinds of
    masks."""
    models = {kernel: network(case.build, case.shape, kernel) for kernel in (1, 3)}
    for criterion, masked, kernel in VARIANTS:
        model = models[kernel]
        x = random_batch(model.inputs, 3, 5).double()
        every = random_masks(model, 0.6, 2)
        masks = {
            "none": None, "last": {"last.weight": every["last.weight"]}, "all": every
        }[masked]  # fmt: skip
        expected = _expected(case, kernel, model, x, criterion, masks)
        what = f"{criterion}, {masked} masked, kernel {kernel}"
        _compare(case, model, x, criterion, masks, expected, what)
        if criterion == "px" and masks is None:
            with data_pass_forced():
                _compare(case, model, x, criterion, masks, expected, f"{what}, data pass forced")


def _compare(
    case: Case,
    model: nn.Module,
    x: Tensor,
    criterion: str,
    masks: Any,
    expected: Mapping[str, Tensor],
    what: str,
) -> None:
    scores = pxfast.score(model, x, criterion=criterion, masks=masks, **case.options)
    mine = list(scores)
    if isinstance(case.expected, Rule):  # which says nothing of the operation's own weights
        mine = ["first.weight", "last.weight"]
    assert len(mine) == len(expected), f"{what}: {mine}, expected {list(expected)}"
    for name, theirs in zip(mine, expected.values(), strict=True):
        close(scores[name], theirs, SMALL_NET[torch.float64], f"{what}: {name}")


def _expected(
    case: Case, kernel: int, model: Middle, x: Tensor, criterion: str, masks: Any
) -> Mapping[str, Tensor]:
    if isinstance(case.expected, Rule):
        return by_rule(case.expected, model, x, criterion, masks or {})
    other = model
    if case.expected is not None:
        other = network(case.expected, case.shape, kernel)
        own = {name: tensor for name, tensor in model.state_dict().items()}
        assert [t.shape for t in own.values()] == [t.shape for t in other.state_dict().values()]
        other.load_state_dict(dict(zip(other.state_dict(), own.values(), strict=True)))
    return px.score(other, x, criterion=criterion, masks=masks, **case.options)


def by_rule(
    rule: Rule, model: Middle, x: Tensor, criterion: str, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Scores of the two layers of `model` where the operation does to paths what `rule` says."""
    names = ("first.weight", "last.weight")
    theta = {name: model.get_parameter(name).detach() for name in names}
    mask = {name: masks.get(name, torch.ones_like(theta[name])).double() for name in names}
    squares = {name: (theta[name] ** 2 * mask[name]).requires_grad_() for name in names}
    theta = {name: theta[name] * mask[name] for name in names}

    def through(weights: Mapping[str, Tensor], x: Tensor, middle: Operation) -> Tensor:
        path = middle(_linear(model.first, weights["first.weight"], x))
        return _linear(model.last, weights["last.weight"], path.flatten(1))

    with torch.no_grad():
        first = {"weight": theta["first.weight"], "bias": model.first.bias}
        z = torch.func.functional_call(model.first, first, (x,))
    if criterion == "px":
        s = through(mask, x**2, lambda path: rule.h(path, z)).sum(0)
        g = through(squares, torch.ones_like(x[:1]), rule.g)[0]
        total = (s * g).sum()
    else:
        total = through(squares, x**2, lambda path: rule.joint(path, z)).sum()
    slopes = torch.autograd.grad(total, list(squares.values()))
    return {
        name: (squares[name] * slope / total).detach()
        for name, slope in zip(names, slopes, strict=True)
    }


def _linear(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    values = {"weight": weight, "bias": torch.zeros_like(layer.bias)}
    return torch.func.functional_call(layer, values, (x,))


# ---- rules written out --------------------------------------------------------------------------


def as_it_is(operation: Operation, shape: tuple[int, ...]) -> Rule:
    """A linear operation, applied with the absolute values of its coefficients.

    They are read off the operation: its response to every unit vector.
    """
    units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        rest = operation(torch.zeros_like(units))
        coefficients = (operation(units.clone()) - rest).abs()

    def apply(path: Tensor, _: Any = None) -> Tensor:
        return torch.tensordot(path.flatten(1), coefficients, 1)

    return Rule(apply, apply, apply)


def linear(operation: Operation, shape: tuple[int, ...]) -> Case:
    """The case of an operation that moves or adds entries."""
    return of(operation, shape, as_it_is(operation, shape))


def gate(squared: Callable[[Tensor], Tensor]) -> Rule:
    """× a squared gate in h and the joint network, open in g."""
    return Rule(lambda path, z: path * squared(z), lambda path: path, lambda p, z: p * squared(z))


def constant(factor: Tensor | float) -> Rule:
    """× the square of a constant where weights count."""
    square = factor**2
    return Rule(lambda path, z: path, lambda path: path * square, lambda path, z: path * square)


# ---- other looks at the engine ------------------------------------------------------------------


@contextlib.contextmanager
def data_pass_forced() -> Iterator[None]:
    """Run the data pass also where the data cancels."""
    cancels = Passes.data_cancels
    Passes.data_cancels = lambda self, batch: False
    try:
        yield
    finally:
        Passes.data_cancels = cancels


def behind(operation: Operation, z: Tensor, path: Tensor | None = None, **network: bool) -> Tensor:
    """The path sum behind an operation on values z; by default in h and of a path sum of 1, so that
    what comes out of an activation is its squared gate."""
    flags = {"gates": True, "squares": False, "values": True} | network
    weights = Weights(nn.Module(), {}, lambda name: False, z.dtype)
    net = Network(weights, **flags, differentiate=False, batchnorm="running", device=z.device,
                  dtype=z.dtype)  # fmt: skip
    entering = PathSum(torch.ones_like(z) if path is None else path)
    with torch.no_grad(), Interpreter(net):
        result = operation(net.tensor(z if net.values else z.to("meta"), entering))
    full = result.path.widened(result.value.shape)
    return full * 2.0 ** int(result.path.exponent)


__all__ = [
    "NORMS", "Case", "Middle", "Rule", "as_it_is", "behind", "by_rule", "check", "constant",
    "data_pass_forced", "gate", "linear", "network", "of",
]  # fmt: skip
