"""A mistake that CUDA code is prone to, planted in a copy of the kernels' source.

It is a replacement of text that occurs once, the check that must catch it, and how that shows.
The sources themselves hold no trace of this. The files beside this one list the mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulated.build import Change, Program


@dataclass(frozen=True)
class Bug:
    """One mistake. `sign` is a regular expression that the program's output must match."""

    name: str
    change: Change
    sign: str
    check: str = "plain"
    source: str = "cases.cpp"
    weights: str = "float"

    @property
    def program(self) -> Program:
        """The cases, compiled from the changed source; for one type of weights, to save time."""
        flags = ("-O0", f"-DCASES_WEIGHTS={self.weights}")
        return Program(self.source, self.check, flags, self.change)


WRONG = r"WRONG "
FAILURE = r"^(?!PASSED)"  # wrong or crashed, whatever came first
