"""The table of rules: which function says what happens to paths at each torch function.

A rule is called as ``rule(network, func, *args, **kwargs)`` with the arguments of the torch
function, and returns what the torch function returns, with PathTensors in place of tensors. See
docs/extending.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

from pxfast.errors import NoRuleError

Rule = TypeVar("Rule", bound=Callable[..., Any])


class Entry(NamedTuple):
    """A rule, and whether it only asks for metadata (shape, dtype), which a stale path cannot
    spoil."""

    rule: Callable[..., Any]
    metadata: bool


_RULES: dict[Any, Entry] = {}


def rule(*functions: Any, metadata: bool = False) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of one or more torch functions.

    Args:
        functions: torch functions as the model calls them, for example ``torch.special.entr`` or
            ``torch.Tensor.cumsum``. Registering a function again replaces its rule.
        metadata: True for functions that read neither values nor paths.

    Returns:
        The decorator. The rule is called as ``rule(network, func, *args, **kwargs)``: see
        docs/extending.md.

    Example:
        >>> import torch, pxfast
        >>> @pxfast.rule(torch.special.erfinv)
        ... def erfinv(network, func, x):
        ...     value = network.value(func, x)
        ...     gate = value / x.value  # how much the activation passes on, at this sample
        ...     return network.tensor(value, network.gated(x, lambda: gate.square()))
    """
    if not functions or not all(callable(function) for function in functions):
        raise TypeError(
            "rule: expected the torch functions to register for, as in @pxfast.rule(torch.cumsum)"
        )

    def register(function: Rule) -> Rule:
        for torch_function in functions:
            _RULES[torch_function] = Entry(function, metadata)
        return function

    return register


def find(function: Any) -> Entry | None:
    """The rule of a torch function, or None."""
    return _RULES.get(function)


def spellings(*names: str) -> list[Any]:
    """Every public spelling of a torch function: torch.x, F.x, Tensor.x and their in-place
    forms."""
    found: list[Any] = []
    for name in names:
        for spelled in (name, f"{name}_"):
            for namespace in (torch, F, Tensor, torch.special):
                function = getattr(namespace, spelled, None)
                if callable(function) and function not in found:
                    found.append(function)
    return found


def in_place_target(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The PathTensor that an in-place spelling (``relu_``, ``+=``, ``inplace=True``) writes to, or
    None."""
    from pxfast.paths.tensor import PathTensor

    if kwargs.get("out") is not None:
        raise NoRuleError("out= is not supported while scoring; assign the result instead")
    if not (kwargs.get("inplace") or is_in_place(func)):
        position = _INPLACE_POSITION.get(func)
        if position is None or len(args) <= position or args[position] is not True:
            return None
    target = args[0] if args else kwargs.get("input")
    if not isinstance(target, PathTensor):
        raise NoRuleError(
            f"{func.__name__} writes a path into a tensor that carries none. Build the result out "
            "of place, for example with torch.cat or torch.stack."
        )
    return target


@functools.cache
def is_in_place(func: Any) -> bool:
    """Whether a function always writes to its first argument."""
    name = getattr(func, "__name__", "")
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


_IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div", "pow")} | {
    "__setitem__"
}
# where `inplace` stands when it is passed by position
_INPLACE_POSITION = {
    F.relu: 1, F.relu6: 1, F.leaky_relu: 2, F.elu: 2, F.selu: 1, F.celu: 2, F.silu: 1, F.mish: 1,
    F.hardtanh: 3,
    F.hardswish: 1, F.hardsigmoid: 1, F.threshold: 3, F.dropout: 3, F.dropout2d: 3, F.dropout3d: 3,
    F.alpha_dropout: 3, F.dropout1d: 3, F.rrelu: 4, F.feature_alpha_dropout: 3,
}  # fmt: skip


_RECURRENT = {
    f"torch.{name}{cell}"
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    for cell in ("", "_cell")
}

STALE = (
    "a tensor was read after an in-place operation had changed it through another view of the same "
    "memory, so its path sum is out of date. Write the operation out of place (x = x + y instead "
    "of x[...] += y), or index-assign on the tensor itself before taking views of it."
)


def full_name(function: Any) -> str:
    """A torch function as one writes it: ``torch.nn.functional.glu``, ``torch.Tensor.cumsum``."""
    name = resolve_name(function)
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return f"torch.ops.{name}"
    if name is None and getattr(torch, getattr(function, "__name__", ""), None) is function:
        return f"torch.{function.__name__}"
    if name is None and getattr(function, "__module__", None):
        return f"{function.__module__}.{function.__qualname__}"
    return name or repr(function)


def missing_rule(function: Any, where: str) -> str:
    """The message for an operation without a rule: what, where, and the lines that would add
    one."""
    name = full_name(function)
    if name in _RECURRENT:
        return (
            f"{name} has no rule (called in {where}): paths that go round in a recurrent layer are "
            "not known. Write its steps out with F.linear, torch.sigmoid and torch.tanh, whose "
            "gates are."
        )
    if name.endswith("_loss"):
        return (
            f"{name} (called in {where}) is a loss, which has no rule: scores are of the model's "
            "outputs. Leave out of the batch what makes its forward compute a loss, such as labels."
        )
    return (
        f"{name} has no rule that says how paths go through it (called in {where}).\n"
        "If it passes paths on entry by entry, these lines add one before scoring:\n"
        f"    @pxfast.rule({name})\n"
        "    def my_rule(network, func, x, *args, **kwargs):\n"
        "        return network.tensor(network.value(func, x, *args, **kwargs), x.path)\n"
        "docs/extending.md says what a rule may do (squared gates, squared factors, sums)."
    )


def complex_rule(function: Any, where: str) -> str:
    """The message for a function of complex tensors that would lose their paths."""
    return (
        f"{full_name(function)} has no rule for complex tensors (called in {where}): known are "
        "movements of entries, products with a constant, torch.view_as_complex and "
        "torch.view_as_real. Write it with real numbers, or put it into a function of its own and "
        "register a rule for that with pxfast.rule."
    )
