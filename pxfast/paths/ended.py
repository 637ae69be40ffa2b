"""Where paths end: functions that make a gate tensor, a value without a path, of a tensor with
one."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from pxfast.paths.names import described

AS_GATE = (
    "Say it in the model's forward: pxfast.as_gate(x) @ y, or pxfast.as_gate(x) * y, makes x the "
    "gate and y the value (docs/extending.md)."
)


class Ended(NamedTuple):
    """A function that ended a path.

    Attributes:
        function: its name.
        model: the model.
        module: the module that called it, or None.
        product: whether it multiplied two tensors with paths.
    """

    function: str
    model: nn.Module
    module: nn.Module | None
    product: bool = False

    def __str__(self) -> str:
        where = "the model's forward" if self.module is None else described(self.model, self.module)
        return f"{self.function} (in {where})"

    @property
    def advice(self) -> str:
        """What to do where the path was wanted."""
        if self.product:
            return (
                "It multiplies two tensors with paths, no softmax opens the product, and neither "
                f"factor is known to be the gate. {AS_GATE}"
            )
        return (
            "If it is an activation there, put it into a function of its own and register a rule "
            "for that with pxfast.rule (docs/extending.md)."
        )
