"""Network: which of the auxiliary networks of SPEC h, g or J a pass computes, and the arithmetic
rules share.

================  ===========================  ==============================  =================
network           squared gates of the data    weights enter as                input path sum
================  ===========================  ==============================  =================
h  (activation)   yes                          their mask M                    x²
g  (kernel)       no: every gate is open       θ²·M                            1
J  (joint)        yes                          θ²·M                            x²
================  ===========================  ==============================  =================
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pxfast.paths.ended import Ended
from pxfast.paths.opening import Entries, Opening
from pxfast.paths.pathsum import PathSum
from pxfast.paths.registry import full_name
from pxfast.paths.shapes import Shapes, common_shape

if TYPE_CHECKING:
    from pxfast.paths.side import Product
    from pxfast.paths.tensor import PathTensor, Unfinished
    from pxfast.paths.weights import Weights

_AS_IT_IS = contextlib.nullcontext()  # entered at every function: one for all


class NeedsValuesError(Exception):
    """The model's forward looked at values in a pass that was run on shapes alone; the pass is run
    again with them."""


@dataclass
class Network:
    """One pass over the model.

    Attributes:
        weights: the model's weights, their masks and the score buffers.
        gates: multiply path sums by the squared gates of the data (h, J).
        squares: weights enter as θ²·M (g, J), otherwise as M (h).
        values: compute the model's values. Without them the forward runs on the meta device (shapes
            alone).
        differentiate: record the path arithmetic for the backward that accumulates scores.
        batchnorm: whether BatchNorm normalises with its running statistics or the batch's.
        device: where path sums live.
        dtype: of path sums, float32 or float64.
        autocast: dtype of the forward's values under autocast, or None.
        bytes: what the PathTensors made so far would hold, an upper bound of the pass's activation
            memory.
        coupled: whether samples of a batch have met, in statistics of the batch.
        products: gate · value products met so far, whose side branches get scores of their own.
        unfinished: tensors whose values have been put off, some of them computed by now.
    """

    weights: Weights
    gates: bool
    squares: bool
    values: bool
    differentiate: bool
    batchnorm: Literal["running", "data"]
    device: torch.device
    dtype: torch.dtype
    autocast: torch.dtype | None = None
    bytes: int = 0
    coupled: bool = False
    products: list[Product] = field(default_factory=list)
    unfinished: list[weakref.ref[PathTensor]] = field(default_factory=list)

    # ---- for rules -------------------------------------------------------------------------------

    def value(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the torch function on the values of its arguments, as the true (masked) network
        does.

        In a pass on shapes alone everything moves to the meta device, which finds the shapes but is
        not quick; `entrywise`, `broadcast` and `shaped` are the short cuts for the most common
        functions.
        """
        args = tuple(map(self._values, args))
        if kwargs:
            kwargs = {name: self._values(argument) for name, argument in kwargs.items()}
        with torch.no_grad() if torch.is_grad_enabled() else _AS_IT_IS:
            if not self.values:
                with Shapes():
                    return func(*args, **kwargs)
            if self.autocast is None:
                return func(*args, **kwargs)
            with torch.autocast(self.device.type, self.autocast):
                return func(*args, **kwargs)

    def _values(self, argument: Any) -> Any:
        """The arguments of a torch function with values in place of PathTensors."""
        if isinstance(argument, Tensor):
            value = getattr(argument, "value", argument)
            return value if self.values or value.is_meta else value.detach().to("meta")
        if type(argument) in (tuple, list):
            return type(argument)(map(self._values, argument))
        return argument

    def broadcast(self, func: Callable[..., Any], x: Any, y: Any, **kwargs: Any) -> Any:
        """As `value`, for functions of two operands that broadcast against each other."""
        if self.values:
            return self.value(func, x, y, **kwargs)
        x, y = self._values((x, y))
        shapes = [operand.shape for operand in (x, y) if isinstance(operand, Tensor)]
        return torch.empty(common_shape(*shapes), dtype=torch.result_type(x, y), device="meta")

    def shaped(
        self, shape: Callable[[], tuple[int, ...]], func: Callable[..., Any], x: Any, *args: Any
    ) -> Any:
        """As `value`, for functions that keep the dtype of ``x`` and whose output shape is known
        beforehand."""
        return self.value(func, x, *args) if self.values else x.value.new_empty(shape())

    def entrywise(self, func: Callable[..., Any], x: PathTensor, *args: Any, **kwargs: Any) -> Any:
        """As `value`, for functions that keep the shape and dtype of ``x``: nothing to compute on
        shapes alone, but a tensor of its own to be changed in place."""
        return self.value(func, x, *args, **kwargs) if self.values else x.value.data

    def tensor(self, value: Any, path: PathSum | None) -> Any:
        """Pair a value with its path sum."""
        from pxfast.paths.tensor import PathTensor

        self.bytes += value.nbytes
        if path is not None:
            if len(path.shape) < value.dim():  # broadcasting added dimensions
                path = path.map(lambda m: m[(None,) * (value.dim() - m.dim())])
            self.bytes += path.shape.numel() * self.dtype.itemsize
        return PathTensor(value, path, self.device)

    def later(self, work: Unfinished, shape: Sequence[int]) -> Any:
        """The tensor that a computation will give once it is read, in the dtype of path sums."""
        from pxfast.paths.tensor import PathTensor

        like = torch.empty(tuple(shape), dtype=self.dtype, device="meta")
        result = PathTensor(like, None, self.device, work)
        self.note_unfinished(result)
        return result

    def note_unfinished(self, x: PathTensor) -> None:
        """Remember a tensor that may have to be computed before another one changes."""
        if x.unfinished is not None:
            self.unfinished.append(weakref.ref(x))

    def finish(self, changing: Tensor | None = None) -> None:
        """Compute what has been put off and reads a value that is about to change in place;
        everything if none is given."""
        for reference in self.unfinished:
            x = reference()
            work = None if x is None else x.unfinished
            if x is not None and work is not None and (changing is None or work.reads(changing)):
                x.finish()
        self.unfinished = [r for r in self.unfinished if (x := r()) is not None and x.unfinished]

    def opened(self, result: Any, activation: str, x: Any) -> Any:
        """Note on an activation's result what opens it, should it turn out to be a gate."""
        if x.path is not None:
            result.opening = Opening(activation, Entries(x.path, tuple(x.value.shape)))
        elif x.opening is not None and x.opening.activation is None:  # attention logits, which a
            opens = None if activation == "clamp" else activation  # clamp only keeps in range
            result.opening = replace(x.opening, activation=opens)
        return result

    def ended(self, func: Callable[..., Any], product: bool = False) -> Ended:
        """What ended a path here, to be noted on its result."""
        return Ended(full_name(func), self.weights.model, self.weights.module(), product)

    def gated(
        self, x: PathTensor, squared_gate: Callable[[], Tensor], *, everywhere: bool = False
    ) -> PathSum | None:
        """The path of ``x`` times the squared gate where the data's gates count; gates are open
        otherwise.

        ``squared_gate`` is called only where it is needed; its result broadcasts to the value's
        shape. With ``everywhere`` it has that shape, so that shapes alone need no call.
        """
        if x.path is None or not self.gates:
            return x.path
        if everywhere and self.path_device.type == "meta":
            return x.path.map(lambda m: m.new_empty(x.value.shape))
        return x.path.times(self.like_path(squared_gate()))

    def scaled(
        self, path: PathSum | None, squared_factor: Callable[[], Tensor | float]
    ) -> PathSum | None:
        """The path times a squared constant or learned scale where weights count as θ² (g, J);
        times 1 in h, and in the structure pass, to which a scale of 0 is a path."""
        if path is None or not self.squares or self.weights.purpose == "structure":
            return path
        factor = squared_factor()
        return path.times(self.like_path(factor) if isinstance(factor, Tensor) else factor)

    def like_path(self, factor: Tensor) -> Tensor:
        """A factor moved to where this pass keeps its path sums (the meta device if it runs on
        shapes alone)."""
        dtype = (
            factor.dtype if factor.dtype is torch.bool else self.dtype
        )  # an open-or-closed gate stays one byte
        return factor.detach().to(dtype=dtype, device=self.path_device)

    @property
    def anchor(self) -> Tensor:
        """A leaf that requires grad, a new one for each use of a weight: the backward also reaches
        the first layer, whose input needs none, and can be led to some layers alone (side.py)."""
        return torch.zeros((), requires_grad=True)

    @property
    def path_device(self) -> torch.device:
        """The device of mantissas: meta where the path sums themselves are not wanted, only their
        structure."""
        return self.device if self.values or self.squares else torch.device("meta")

    # ---- for the interpreter ---------------------------------------------------------------------

    def path_arithmetic(self) -> AbstractContextManager[Any]:
        """Gradient mode and precision of path sums, whatever the model's forward has set for its
        values."""
        autocast = torch.is_autocast_enabled(self.device.type)
        shapes = self.path_device.type == "meta"
        inference = torch.is_inference_mode_enabled()  # the model's own: PathTensors need versions
        if not (autocast or shapes or inference):  # at every function: as little as is needed
            if torch.is_grad_enabled() == self.differentiate:
                return _AS_IT_IS
            return torch.set_grad_enabled(self.differentiate)
        contexts = contextlib.ExitStack()
        if inference:
            contexts.enter_context(torch.inference_mode(False))
        contexts.enter_context(torch.set_grad_enabled(self.differentiate))
        contexts.enter_context(torch.autocast(self.device.type, enabled=False))
        if shapes:
            contexts.enter_context(Shapes())
        return contexts
