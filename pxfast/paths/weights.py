"""Which tensors are weights, and which mask belongs to each.

Weights are recognised by the tensor that reaches a linear operation, not by wrapping parameters.
While the model runs, `Weights.follow` watches the torch functions that make tensors out of
parameters (sources.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from pxfast.errors import MaskError
from pxfast.offload import Offloaded
from pxfast.paths.masks import FixedParts
from pxfast.paths.names import innermost_module, named_weights, running_module
from pxfast.paths.pathsum import narrow
from pxfast.paths.select import all_set, selected
from pxfast.paths.sources import Source, derived, tensors_in
from pxfast.paths.weight import Purpose, Weight, without_theta

_APPLYING = {"linear"} | {
    f"conv{transposed}{dims}d" for transposed in ("", "_transpose") for dims in (1, 2, 3)
}


@dataclass
class Weights:
    """The weights of one model during one scoring call.

    Attributes:
        model: the model.
        masks: masks given by the caller, by canonical name; they apply on top of the model's own.
        scored: says whether a weight of that name gets scores.
        dtype: of the score buffers, float32 or float64.
        purpose: "scores" S = θ²·M·∂R/∂(θ²·M); "bound" M·∂R/∂(θ²·M); "existence" counts a weight
            that is not 0 as 1, to see which paths exist whatever their size; "structure" counts
            every weight as 1.
        saliency: score buffers by name, made when a backward first needs them.
        spare: memory for them by name, whatever it holds.
        used: the first use of each name in this call, with the mask in force.
        reached: names that the backward from the output has visited.
        rows: by name, the weights in rows that value paths leave; found by the structure pass.
        outside: by name, at how many of the weight's uses not all of its input lies on value paths;
            found there, too.
        side: score buffers of the side branch whose backward runs now, or None.
        memory: by name what was made of θ and M, while a batch runs in parts; else None.
        dead: modules whose gates no path sum opens, so that the weights behind them score 0.
        thinned: whether a weight under a mask has been met.
        applied: how often a weight has reached a linear operation.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    scored: Callable[[str], bool]
    dtype: torch.dtype = torch.float32
    purpose: Purpose = "scores"
    saliency: dict[str, Tensor] = field(default_factory=dict)
    spare: dict[str, Tensor] = field(default_factory=dict)
    used: dict[str, Source] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    rows: dict[str, Tensor] | None = None
    outside: dict[str, int] = field(default_factory=dict)
    side: dict[str, Tensor] | None = None
    memory: dict[str, dict[str, Tensor]] | None = None
    dead: list[str] = field(default_factory=list)
    thinned: bool = False
    applied: int = 0

    def __post_init__(self) -> None:
        self._modules = {id(module) for module in self.model.modules()}
        self._parameters: dict[int, str] = {}
        self._sources: WeakIdKeyDictionary = WeakIdKeyDictionary()
        own = weakref.proxy(self)  # no cycle: scores go as soon as nobody wants them
        self.fixed = FixedParts(lambda tensor: own.source(tensor) is not None)
        self.offloaded = Offloaded(self.model)
        for name, parameter in named_weights(self.model):
            if name not in self.offloaded:
                self._parameters[id(parameter)] = name
        self._given = {name: _as_bool(name, mask) for name, mask in self.masks.items()}
        self._full: dict[str, bool] = {name: all_set(mask) for name, mask in self._given.items()}

    # ---- following tensors from parameters -------------------------------------------------------

    def source(self, tensor: Tensor) -> Source | None:
        """Where a tensor comes from, or None if no parameter went into it."""
        name = self._parameters.get(id(tensor))
        if name is not None:
            return Source(name, tensor.shape, tensor.detach())
        if self.offloaded and (name := self.offloaded.name(tensor)) is not None:
            return Source(name, tensor.shape, tensor.detach(), is_offloaded=True)
        return self._sources.get(tensor)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Remember what a torch function made out of parameters (no path tensors among its
        arguments)."""
        operands = [(arg, self.source(arg)) for arg in tensors_in(args, kwargs)]
        if not any(source for _, source in operands):
            return
        for made, source in derived(func, args, kwargs, operands, result):
            self._sources[made] = source
        self.fixed.follow(func, args, kwargs, result)

    def masked_arguments(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a linear operation that no path goes through, as of a learned query, its
        weight under the mask given for it."""
        if not self._given or getattr(func, "__name__", "") not in _APPLYING:
            return args, kwargs
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        source = self.source(weight) if isinstance(weight, Tensor) else None
        if source is None or self._full.get(source.name, True):
            return args, kwargs
        masked = self(weight).masked()
        return tree_map_only(Tensor, lambda x: masked if x is weight else x, (args, kwargs))

    # ---- for the rules of linear operations ------------------------------------------------------

    def __call__(self, tensor: Tensor) -> Weight:
        """The weight that a tensor stands for where it reaches a linear operation."""
        source = self.source(tensor)
        if source is None:
            return Weight(self, None, tensor.detach(), None)
        self.applied += 1
        if self.purpose == "structure":
            return Weight(self, source, source.seen(source.theta), None)
        mask = self._mask(source)
        self.thinned = self.thinned or mask is not None
        self._check_same_use(source, mask)
        seen_mask = None if mask is None else source.seen(mask)
        weight = Weight(self, source, source.seen(source.theta), seen_mask)
        if self.memory is not None and id(tensor) in self._parameters:  # the same in every part
            weight.memory = self.memory.setdefault(source.name, {})
        return weight

    def _mask(self, source: Source) -> Tensor | None:
        """The model's own mask and the given one together; None where they keep everything."""
        given = self._given.get(source.name)
        if given is not None:
            if given.shape != source.theta.shape:
                raise MaskError(
                    f"masks: the mask of {source.name} must have the weight's shape "
                    f"{list(source.theta.shape)}, got {list(given.shape)}"
                )
            given = None if self._full[source.name] else given.to(source.theta.device)
        if source.mask is None:
            return given
        return source.mask if given is None else source.mask & given

    def _check_same_use(self, source: Source, mask: Tensor | None) -> None:
        if source.name not in self.used:
            self.used[source.name] = replace(without_theta(source), mask=mask, views=())
        first = self.used[source.name]
        if first.theta.shape != source.theta.shape:
            raise MaskError(
                f"{source.name} is used in two forms, of shapes {list(first.theta.shape)} and "
                f"{list(source.theta.shape)}; scores need one. Exclude it with "
                f"exclude=['{source.name}']."
            )
        same = first.mask is mask or (
            first.mask is not None and mask is not None and torch.equal(first.mask, mask)
        )
        if not same:
            raise MaskError(
                f"{source.name} is used under two different masks; a weight can have only one."
            )

    # ---- score buffers ---------------------------------------------------------------------------

    def wants_scores(self, source: Source) -> bool:
        """Whether the running backward is to accumulate scores of a weight that it has reached."""
        if self.purpose == "structure" or not self.scored(source.name):
            return False
        self.reached.add(source.name)
        return True

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Where the running backward accumulates scores."""
        return self.saliency if self.side is None else self.side

    def buffer(self, source: Source) -> tuple[Tensor, bool]:
        """Where the scores of a weight accumulate, and whether nothing has been written there yet:
        a new one holds zeros only if the model sees the weight through views, in parts it may be.
        """
        buffers, name = self.buffers, source.name
        new = name not in buffers
        if new:
            made = self._spare(source)
            if made is None:
                made = torch.empty_like(source.theta, dtype=self.dtype, device=_device(source))
            buffers[name] = made.zero_() if source.views else made
        return buffers[name], new and not source.views

    def _spare(self, source: Source) -> Tensor | None:
        """Spare memory for the scores of a weight, if there is some of its form."""
        spare = None if self.side is not None else self.spare.pop(source.name, None)
        if spare is None or spare.dtype != self.dtype or spare.device != _device(source):
            return None
        like = source.theta
        return spare if (spare.shape, spare.stride()) == (like.shape, like.stride()) else None

    def value_buffer(self, source: Source) -> Tensor | None:
        """By weight: whether a value path leaves its row. None before the structure pass."""
        if self.rows is None:
            return None
        if source.name not in self.rows:
            one = [1] * source.theta.dim()
            none = torch.zeros(one, dtype=torch.bool, device=_device(source))
            self.rows[source.name] = none.expand(source.theta.shape)
        return self.rows[source.name]

    def note_value_rows(self, source: Source, rows: Tensor) -> None:
        """Note rows that value paths leave: flags that broadcast to what a linear operation sees.

        They are held narrow, unless the operation sees the weight through views.
        """
        noted = self.value_buffer(source)
        if noted is None or self.rows is None:
            return
        rows = rows.to(noted.device)
        if source.views:
            like = torch.empty_like(source.theta, dtype=torch.bool, device=_device(source))
            noted = like.copy_(noted)
            seen = source.seen(noted)
            seen |= rows
        else:
            noted = (narrow(noted) | rows).expand(noted.shape)
        self.rows[source.name] = noted

    def forget(self) -> None:
        """Drop what a pass has accumulated."""
        self.saliency.clear()
        self.used.clear()
        self.reached.clear()

    def rescale(self, change: Callable[[Tensor], object]) -> None:
        """Change every score buffer, in place, by a function."""
        for buffer in self.saliency.values():
            change(buffer)

    def kept(self, name: str) -> Tensor:
        """θ·M of a weight that was used."""
        mask, theta = self.used[name].mask, self.theta(name)
        return theta if mask is None else selected(theta, mask)

    def theta(self, name: str) -> Tensor:
        """θ of a weight that was used."""
        source = self.used[name]
        return self.offloaded.load(name) if source.is_offloaded else source.theta

    def describe_empty(self) -> str:
        """Which layers keep no weight, to explain why no path reaches the output."""
        empty = [name for name in self.used if not self.kept(name).count_nonzero()]
        if empty:
            return f"These layers have lost all their weights: {', '.join(empty)}."
        return "No layer is empty: every path passes a weight, gate or input that is 0."

    def module(self) -> nn.Module | None:
        """The module that is running."""
        return innermost_module(self._modules)

    def where(self) -> str:
        """The module that is running, for error messages."""
        return running_module(self.model)


def _device(source: Source) -> torch.device:
    """Of what is kept beside θ: the CPU if it is offloaded."""
    return torch.device("cpu") if source.is_offloaded else source.theta.device


def _as_bool(name: str, mask: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        raise MaskError(
            f"masks: the mask of {name} must be a tensor of 0 and 1, got {type(mask).__name__}"
        )
    if mask.dtype is torch.bool:
        return mask.detach()
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MaskError(f"masks: the mask of {name} holds values other than 0 and 1")
    return mask.detach() != 0
