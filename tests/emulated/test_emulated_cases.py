"""The programs of cases pass, plain and under sanitizers, in every order of blocks and threads."""

from __future__ import annotations

import pytest
from emulated.build import HERE, Program
from emulated.kernels import ORDERS, Order

OTHERS = {"harness_cases", "huge_cases"}  # which tests of their own run
CASES = sorted(path.stem for path in HERE.glob("*cases.cpp") if path.stem not in OTHERS)
CHECKS: dict[str, tuple[Order, ...]] = {"plain": ORDERS, "address": ORDERS, "thread": ("random",)}


@pytest.mark.parametrize(
    ("program", "orders"),
    [
        pytest.param(Program(f"{name}.cpp", check), orders, id=f"{name}, {check}")
        for name in CASES
        for check, orders in CHECKS.items()
    ],
)
def test_a_program_of_cases_passes(program: Program, orders: tuple[Order, ...]) -> None:
    for order in orders:
        ran = program.run(order)
        assert (ran.returncode, ran.stdout) == (0, "PASSED\n")
