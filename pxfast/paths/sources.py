"""Where a tensor of the forward comes from: what torch functions make out of parameters.

* ``mask * parameter``, ``masked_fill`` and ``where`` with 0: still the parameter, with a mask
  (torch.nn.utils.prune, own masked layers);
* views, transposes and casts: still the parameter; scores go back through the same views;
* anything else (weight norm, standardisation): a θ of its own, named after the module's attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """Where a tensor of the forward comes from: a parameter, the masks on the way, the views since
    then."""

    name: str
    shape: torch.Size  # of the parameter
    theta: Tensor  # before masks and views
    mask: Tensor | None = None  # 0/1, of theta's shape
    views: tuple[View, ...] = ()
    is_offloaded: bool = False  # θ can be loaded again, so that nothing need hold it

    def seen(self, tensor: Tensor) -> Tensor:
        """A tensor of theta's shape, as the linear operation sees it."""
        for view in self.views:
            tensor = view(tensor)
        return tensor


_VIEWS = {
    "t", "transpose", "permute", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze",
    "narrow",
    "__getitem__", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "select",
    "swapaxes", "movedim",
    "view_as", "reshape_as", "moveaxis", "swapdims", "adjoint",
}  # fmt: skip
_CASTS = {
    "to", "float", "double", "half", "bfloat16", "type", "type_as", "detach", "clone", "cpu",
    "cuda", "contiguous",
}  # fmt: skip
_GETTERS = {"T", "mT", "data"}
_FACTORIES = {f"{name}_like" for name in ("zeros", "ones", "full", "empty", "rand", "randn")} | {
    f"new_{name}" for name in ("zeros", "ones", "full", "empty", "tensor")
}


Operands = list[tuple[Tensor, Source | None]]


def derived(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: Operands, result: Any
) -> Iterator[tuple[Tensor, Source]]:
    """The new tensors of a call some of whose operands have a source, each with its own."""
    name = getattr(func, "__name__", "")
    if name in _FACTORIES or (name in ("__get__", "__set__") and not isinstance(result, Tensor)):
        return
    if name == "to" or name.endswith("_as"):  # the other tensor only lends its shape or dtype
        operands = operands[:1]
        if operands[0][1] is None:
            return
    single = isinstance(result, Tensor)
    for index, made in enumerate([result] if single else tensors_in((result,), {})):
        if made.is_floating_point() and not any(made is operand for operand, _ in operands):
            yield made, _derive(name, func, args, kwargs, operands, made, None if single else index)


def _derive(
    name: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    operands: Operands,
    made: Tensor,
    index: int | None,
) -> Source:
    """The source of a new tensor: the same weight under a mask or a view, or a θ of its own."""
    sources = [source for _, source in operands if source is not None]
    source = max(sources, key=lambda source: source.theta.numel())  # a scale is not the weight
    masked = _masked_by_product(name, operands)
    if masked is not None:
        return masked
    if len(sources) == 1:
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name == "data":
                return source
        if name in _CASTS and made.shape == source.seen(source.theta).shape:
            return source
        operand = next(tensor for tensor, origin in operands if origin is not None)
        shared = made.untyped_storage().data_ptr() == operand.untyped_storage().data_ptr()
        back = source.theta.shape != source.shape == made.shape  # a computed θ in its own shape
        if shared and (name in _VIEWS or name in _GETTERS) and not back:
            # a view of the score buffer is one, too

            def view(tensor: Tensor, index: int | None = index) -> Tensor:
                seen = func(tensor, *args[1:], **kwargs)
                return seen if index is None else seen[index]

            return replace(source, views=(*source.views, view))
        mask = _mask_of_selection(name, args, kwargs)
        if mask is not None:
            return _with_mask(source, mask, made.shape)
    made = made.detach()
    if source.mask is not None:  # entries that are still exactly 0 are still masked
        mask = source.seen(source.mask)
        if mask.shape == made.shape and not torch.where(mask, 0, made).any():
            return Source(source.name, source.shape, made, mask)
    return Source(source.name, source.shape, made)


def _with_mask(source: Source, mask: Tensor, shape: torch.Size) -> Source:
    """The same weight under a mask of the shape that is seen; views lead it to θ's entries."""
    own = mask.expand(shape)
    if source.views:
        own = torch.ones_like(source.theta, dtype=torch.bool)
        source.seen(own).copy_(mask.expand(shape))
    return replace(source, mask=own if source.mask is None else source.mask & own)


_PRODUCTS = ("mul", "multiply", "__mul__", "__rmul__", "mul_")
_PRODUCTS += ("apply_magnitude_binary_mask",)  # NNCF's


def _masked_by_product(name: str, operands: Operands) -> Source | None:
    """The weight in ``mask * weight``, for a mask of 0 and 1 that may be a parameter itself."""
    if name not in _PRODUCTS or len(operands) != 2:
        return None
    pairs = [operands, operands[::-1]]
    for (tensor, source), (mask, origin) in sorted(pairs, key=lambda pair: pair[1][1] is not None):
        shape = torch.broadcast_shapes(tensor.shape, mask.shape)
        if source is None or tensor.shape != shape or (origin is not None and mask.dim() == 0):
            continue
        keep = mask != 0
        if bool(((mask == 1) | ~keep).all()):
            return _with_mask(source, keep, shape)
    return None


def _mask_of_selection(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a masked_fill or a where with 0 keeps; None for anything else."""
    if name in ("masked_fill", "masked_fill_"):
        fill = args[2] if len(args) > 2 else kwargs.get("value")
        mask = args[1] if len(args) > 1 else kwargs.get("mask")
        return ~mask if isinstance(mask, Tensor) and _is_zero(fill) else None
    if name == "where" and len(args) == 3:
        condition, yes, no = args
        if _is_zero(no):
            return condition.bool()
        return ~condition.bool() if _is_zero(yes) else None
    return None


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not bool(value.detach().any())
    return isinstance(value, (int, float)) and value == 0


def tensors_in(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Iterable[Tensor]:
    """The tensors among arguments, also inside lists and tuples."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value, {})
