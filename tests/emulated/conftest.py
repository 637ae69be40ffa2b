from __future__ import annotations

import os

import pytest
from emulated.build import Program, Unavailable, compiler, require


@pytest.fixture(scope="session", autouse=True)
def compile_ahead(request: pytest.FixtureRequest) -> None:
    """Compiles the programs that the chosen tests are given, all processors at once."""
    for item in request.session.items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            for value in item.callspec.params.values():
                if isinstance(value, Program):
                    value.start()


@pytest.fixture(autouse=True)
def harness_works_here(request: pytest.FixtureRequest) -> None:
    """Skips where there is no compiler for the harness; fails with PXFAST_REQUIRE=emulated."""
    callspec = getattr(request.node, "callspec", None)
    programs = [v for v in (callspec.params.values() if callspec else ()) if isinstance(v, Program)]
    try:
        compiler()
        for program in programs:
            require(program.check)
    except Unavailable as reason:
        if "emulated" in os.environ.get("PXFAST_REQUIRE", "").split(","):
            pytest.fail(f"PXFAST_REQUIRE=emulated: {reason}")
        pytest.skip(str(reason))
