"""An operation without a rule: the error names it and its module, and its three lines work."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import nets
import pytest
import torch
from tolerances import SMALL_NET, close
from torch import Tensor, nn
from torch.overrides import get_testing_overrides

import pxfast
from pxfast.errors import NoRuleError
from pxfast.paths import registry

LIBRARY = torch.library.Library("pxfast_tests", "FRAGMENT")
LIBRARY.define("shuffled(Tensor x) -> Tensor")
LIBRARY.impl("shuffled", lambda x: x.flip(-1), "CompositeExplicitAutograd")


class Block(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def model(function: Callable[..., Any]) -> nn.Module:
    return nets.seeded(lambda: nn.Sequential(Block(function), nn.Linear(4, 2)), 0)


WITHOUT_A_RULE: dict[str, Callable[..., Any]] = {
    "torch.asinh": torch.asinh,
    "torch.Tensor.arcsinh": lambda x: x.arcsinh(),
    "torch.Tensor.asinh_": lambda x: x.clone().asinh_(),
    "torch.special.erfinv": lambda x: torch.special.erfinv(x / 100),
    "torch.nan_to_num": lambda x: torch.nan_to_num(x, nan=0.0),
    "torch.Tensor.as_strided": lambda x: x.as_strided(x.shape, x.stride()),
    "torch.ops.pxfast_tests.shuffled": lambda x: torch.ops.pxfast_tests.shuffled(x),
}


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rules that a test adds go again."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    yield


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("name", WITHOUT_A_RULE)
@pytest.mark.usefixtures("rules")
def test_the_lines_printed_add_a_rule(name, criterion):
    """They let paths through entry by entry: the scores are those without the function."""
    x = nets.random_batch((4,), 3)
    network = model(WITHOUT_A_RULE[name])
    with pytest.raises(NoRuleError) as caught:
        pxfast.score(network, x, criterion=criterion)
    message = str(caught.value)
    assert message.startswith(f"{name} has no rule")
    assert "(called in 0 (Block))" in message
    lines = re.findall(r"^    .*$", message, re.MULTILINE)
    assert len(lines) == 3 and lines[0].strip() == f"@pxfast.rule({name})"
    exec(textwrap.dedent("\n".join(lines)), {"pxfast": pxfast, "torch": torch})
    scores = pxfast.score(network, x, criterion=criterion)
    expected = pxfast.score(model(nn.Identity()), x, criterion=criterion)
    for weight in expected:
        close(scores[weight], expected[weight], SMALL_NET[torch.float32], weight)


def test_the_names_printed_are_those_of_the_functions():
    """Every public function that has no rule can be pasted by its name."""
    public = [f for f in get_testing_overrides() if f not in registry._RULES]
    unnamed = []
    for function in public:
        name = registry.full_name(function)
        try:
            found = eval(name, {"torch": torch})
        except (SyntaxError, AttributeError):
            found = None
        if found != function and not re.search(r"\b_", name):  # private ones apart
            unnamed.append(name)
    assert len(public) > 500 and not unnamed


def test_a_rule_needs_functions():
    with pytest.raises(TypeError, match="expected the torch functions to register for"):
        pxfast.rule()
    with pytest.raises(TypeError, match="expected the torch functions to register for"):
        pxfast.rule("relu")
