"""Every planted bug is caught, in whatever order blocks and threads run."""

from __future__ import annotations

import re

import pytest
from emulated.build import Program
from emulated.planted import (
    gate,
    masked_ones,
    selection,
    squared_attention,
    squared_conv2d,
    squared_linear,
    squared_linear_on_tensor_cores,
)

BUGS = (
    *squared_linear.BUGS,
    *squared_linear_on_tensor_cores.BUGS,
    *gate.BUGS,
    *selection.BUGS,
    *squared_attention.BUGS,
    *squared_conv2d.BUGS,
    *masked_ones.BUGS,
)
PARAMETERS = [pytest.param(bug.program, bug.sign, id=bug.name) for bug in BUGS]


@pytest.mark.parametrize(("program", "sign"), PARAMETERS)
def test_a_planted_bug_is_caught(program: Program, sign: str) -> None:
    for order in ("forward", "reverse", "random") if program.check == "plain" else ("random",):
        ran = program.run(order)
        assert ran.returncode != 0
        assert re.search(sign, ran.stdout), f"{order}: {ran.stdout[:4000]}"
