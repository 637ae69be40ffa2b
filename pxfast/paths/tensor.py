"""PathTensor: a value and, beside it, the path sum that has reached the same place.

A model is interpreted, not rewritten: its forward runs once, unchanged, on PathTensors.
`Interpreter` sees every torch function it calls and hands those that touch a PathTensor to the rule
of that function (registry.py).

A PathTensor is a wrapper without storage of its own. Whatever reaches it outside the rules (a
scripted function, a C++ operator) ends in `__torch_dispatch__`, which raises: a path is never lost
silently.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from pxfast.errors import NoRuleError, PxfastError
from pxfast.paths import registry
from pxfast.paths.ended import Ended
from pxfast.paths.network import Network
from pxfast.paths.opening import Opening
from pxfast.paths.pathsum import PathSum


class Unfinished(Protocol):
    """A computation of a value and its path that has been put off."""

    def run(self) -> tuple[Tensor, PathSum]:
        """Its result."""
        ...

    def reads(self, value: Tensor) -> bool:
        """Whether a change of this value in place would change the result."""
        ...


class PathTensor(Tensor):
    """A tensor of the model's forward, with the path sum that goes with it.

    Attributes:
        unfinished: how to compute value and path, where they have not been read yet: what comes
            next may be computed with them.
    """

    unfinished: Unfinished | None = None
    # whose mean or largest entry this is: subtracting it centres
    mean_of: weakref.ref[PathTensor] | None = None
    opening: Opening | None = (
        None  # the activation it came out of, if only reshaped or scaled since
    )
    ended: Ended | None = None  # the function that made a gate tensor of a path, here or before
    logits: tuple[PathSum, torch.Size] | None = None  # what entered a softmax over classes
    halves: tuple[PathSum, PathSum] | None = None  # of a complex tensor: those of both its parts
    own: int = 0  # this tensor's bit
    constant: bool = False  # whether it only has the shape of path tensors, and no data in it
    lineage: int = 0  # its own bit and those of all path tensors that it was computed from
    _version_seen: int

    @staticmethod
    def __new__(
        cls,
        value: Tensor,
        path: PathSum | None,
        device: torch.device,
        unfinished: Unfinished | None = None,
    ) -> PathTensor:
        """Pair a value with its path; the model is told ``device``, whatever holds the value. With
        ``unfinished``, the value only shows shape, strides and dtype."""
        self = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=device,
        )
        self._value, self._path, self._version_seen = value, path, value._version
        self.unfinished = unfinished
        return self

    @property
    def value(self) -> Tensor:
        """What the model computes; on the meta device in a pass that needs no values."""
        if self.unfinished is not None:
            self.finish()
        return self._value

    @property
    def path(self) -> PathSum | None:
        """The path sum, or None for a *gate tensor*: a value computed from path tensors that
        carries no path itself (a norm, attention probabilities)."""
        if self.unfinished is not None:
            self.finish()
        return self._path

    def finish(self) -> None:
        """Compute value and path now, if they have not been."""
        if self.unfinished is not None:
            self._value, self._path = self.unfinished.run()
            self._version_seen, self.unfinished = self._value._version, None

    def become(self, result: PathTensor) -> None:
        """Take over the result of an in-place operation; other views of the old value are stale
        from now on."""
        if self.unfinished is None and result._value is not self._value:
            torch.autograd.graph.increment_version(self._value)
        self._value, self._path, self.unfinished = result._value, result._path, result.unfinished
        self._version_seen = self._value._version

    def check_fresh(self) -> None:
        """Raise if the value was changed in place behind the path's back (through a view, or
        outside a rule)."""
        if self.unfinished is None and self._value._version != self._version_seen:
            raise NoRuleError(registry.STALE)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        message = (
            f"{func} reached a path tensor outside every rule, so its path would be lost. This "
            "happens inside scripted or traced functions, C++ operators and functions called "
            "after scoring has ended. Use the eager form of the function, or register a rule for "
            "it with pxfast.rule."
        )
        Interpreter.note_lost_path(message)
        raise NoRuleError(message)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PathTensor(shape={tuple(self.value.shape)}, dtype={self.value.dtype})"


class Interpreter(TorchFunctionMode):
    """Runs a model's forward on PathTensors, in one `Network` (h, g or the joint network)."""

    _active: list[Interpreter] = []  # noqa: RUF012 - a stack of the interpreters that are running

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        self._count = 0  # path tensors made so far
        self.layers = 0  # the bits of those that a weight was applied for
        self.lost: str | None = (
            None  # a path lost in code that hides the error's type (TorchScript)
        )

    def __enter__(self) -> Interpreter:
        Interpreter._active.append(self)
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        Interpreter._active.pop()
        if self.lost is not None and not isinstance(error, PxfastError):
            raise NoRuleError(self.lost) from error

    @classmethod
    def running(cls) -> Interpreter:
        """The innermost interpreter: entered again, a rule's own torch functions go by the
        rules."""
        return cls._active[-1]

    @classmethod
    def note_lost_path(cls, message: str) -> None:
        """Remember a lost path, in case the error is swallowed or changed on its way."""
        if cls._active and cls._active[-1].lost is None:
            cls._active[-1].lost = message

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        network = self.network
        path_tensors = path_tensors_in(args)
        if kwargs:
            path_tensors += path_tensors_in(kwargs.values())
        if not path_tensors:
            if registry.is_in_place(func):
                network.finish()
            masked_args, masked_kwargs = network.weights.masked_arguments(func, args, kwargs)
            result = func(*masked_args, **masked_kwargs)
            network.weights.follow(func, args, kwargs, result)
            return result
        entry = registry.find(func)
        if entry is None:
            raise NoRuleError(registry.missing_rule(func, network.weights.where()))
        if entry.metadata:
            return entry.rule(network, func, *args, **kwargs)
        for tensor in path_tensors:
            tensor.check_fresh()
        target = registry.in_place_target(func, args, kwargs)
        if target is not None and target.unfinished is None:
            network.finish(target.value)
        applied = network.weights.applied
        with network.path_arithmetic():
            if not network.values and all(tensor.constant for tensor in path_tensors):
                made = self._constant(func, args, kwargs)
                result = made if target is None else network.tensor(target.value, None)
            else:
                result = entry.rule(network, func, *args, **kwargs)
        if target is not None:
            target.become(result)
            network.note_unfinished(target)
            target.opening, target.mean_of = result.opening, result.mean_of
            target.halves = result.halves
            result = target
        if any(tensor.halves is not None for tensor in path_tensors):
            self._check_halves(func, result)
        self._note_lineage(path_tensors, result, target, network.weights.applied > applied)
        return result

    def _constant(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a function makes of tensors without data, with its values, in a pass on shapes."""
        args, kwargs = tree_map_only(PathTensor, lambda x: x.value, (args, kwargs))
        with torch.no_grad():
            made = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda value: self.network.tensor(value, None), made)

    def _check_halves(self, func: Any, result: Any) -> None:
        """Raise if a function of a complex tensor has lost the paths of its halves."""
        for made in path_tensors_in((result,)):
            number = made.value.is_floating_point() or made.value.is_complex()
            if number and made.path is None and made.halves is None and not made.constant:
                raise NoRuleError(registry.complex_rule(func, self.network.weights.where()))

    def _note_lineage(
        self, operands: list[PathTensor], result: Any, target: Any, layer: bool
    ) -> None:
        """Note what a result was computed from, and whether by a layer."""
        ancestors = 0
        for operand in operands:
            ancestors |= operand.lineage
        for made in path_tensors_in((result,)):
            if made.own and made is not target:
                continue  # the rule handed an operand through
            if made.unfinished is None and made.path is None and made.ended is None:
                made.ended = next((x.ended for x in operands if x.ended is not None), None)
            self._count += 1
            constant = all(operand.constant for operand in operands)
            made.constant = constant or (made.constant and made is not target)
            made.lineage |= ancestors | 1 << self._count
            made.own = 1 << self._count
            if layer:
                self.layers |= made.own


def path_tensors_in(arguments: Iterable[Any]) -> list[PathTensor]:
    """The PathTensors among arguments of a torch function, also inside lists and tuples."""
    found = []
    for argument in arguments:
        if isinstance(argument, PathTensor):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found += path_tensors_in(argument)
    return found
