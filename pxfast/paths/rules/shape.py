"""Operations that move entries around: reshape, permute, slice, concatenate, pad, interpolate.
Paths go as they are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pxfast.errors import NoRuleError
from pxfast.paths.network import NeedsValuesError, Network
from pxfast.paths.pathsum import PathSum, Runs, aligned, narrow, total
from pxfast.paths.rearranged import Move, expanded, indexed, movement, reshaped
from pxfast.paths.registry import rule, spellings
from pxfast.paths.rules.activation import out_of_place
from pxfast.paths.rules.arithmetic import is_logits, masked_logits, path_of


def _getter(name: str) -> Any:
    """The function that reads a property of tensors."""
    return getattr(Tensor, name).__get__


_MOVING = [
    "flatten", "unflatten", "reshape", "permute", "transpose", "swapaxes", "swapdims", "movedim",
    "moveaxis", "t",
    "squeeze", "unsqueeze", "expand", "broadcast_to", "repeat", "tile", "repeat_interleave",
    "flip", "fliplr", "roll",
    "rot90", "narrow", "select", "index_select", "chunk", "split", "split_with_sizes",
    "tensor_split", "unbind",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "unfold",
    "diagonal", "adjoint",
    "take_along_dim", "gather", "tril", "triu", "alias", "unsafe_chunk",
    "unsafe_split", "ravel", "flipud", "hsplit", "vsplit", "dsplit",
]  # fmt: skip


@rule(
    *spellings(*_MOVING),
    *map(_getter, ("T", "mT", "H", "mH")),
)
def move(network: Network, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply the same movement to value and path; constant dimensions that survive stay narrow."""
    function = _copying(func)
    counted = "repeat_interleave" in func.__name__ and "output_size" not in kwargs
    if counted and not network.values and not isinstance((*args, *kwargs.values())[0], int):
        raise NeedsValuesError  # how many entries there will be depends on the counts

    def along(m: Tensor) -> Any:
        rest, named = tree_map_only(Tensor, lambda t: t.to(m.device), (args, kwargs))
        return function(m, *rest, **named)

    value = network.value(function, x, *args, **kwargs)
    name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
    return moved(network, x, value, movement(name.removesuffix("_"), along, args, kwargs, value))


@rule(Tensor.view, Tensor.view_as, Tensor.reshape_as, Tensor.expand_as, torch.view_copy)
def view(network: Network, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A view of the value; the path may have another memory layout, so it is reshaped."""
    value = network.value(func, x, *args, **kwargs)
    if args and isinstance(args[0], torch.dtype):
        raise NoRuleError("Tensor.view(dtype) reinterprets bits; it has no path")
    as_large = func is Tensor.expand_as
    return moved(network, x, value, (expanded if as_large else reshaped)(value.shape))


def moved(network: Network, x: Any, value: Any, move: Move) -> Any:
    """Pair the value(s) of a movement with the path(s) moved the same way."""
    single, shape = isinstance(value, Tensor), x.value.shape
    values = [value] if single else list(value)
    if x.path is None:
        results = [network.tensor(v, None) for v in values]
    else:
        paths = move(x.path.mantissa, shape)
        pairs = zip(values, [paths] if single else paths, strict=True)
        results = [network.tensor(v, PathSum(m, x.path.exponent)) for v, m in pairs]
    for index, result in enumerate(results):
        result.mean_of = x.mean_of
        along = move if single else _at(move, index)
        if x.opening is not None:
            result.opening = x.opening.moved(shape, along, result.value.shape)
        if x.halves is not None:
            real, imaginary = (PathSum(along(h.mantissa, shape), h.exponent) for h in x.halves)
            result.halves = (real, imaginary)
    return results[0] if single else type(value)(results)


def _at(move: Move, index: int) -> Move:
    """One of the results of a movement."""
    return lambda tensor, shape: move(tensor, shape)[index]


@rule(Tensor.__getitem__)
def get_item(network: Network, func: Any, x: Any, index: Any) -> Any:
    """Slices and index tensors."""
    from pxfast.paths.tensor import PathTensor

    if not isinstance(x, PathTensor):  # a table indexed by something computed: no path starts there
        return network.tensor(network.value(func, x, index), None)
    masks = [i for i in (index if isinstance(index, tuple) else (index,)) if isinstance(i, Tensor)]
    if any(i.dtype in (torch.bool, torch.uint8) for i in masks) and not network.values:
        raise NeedsValuesError  # how many entries are picked depends on the mask's entries
    plain = tree_map_only(PathTensor, lambda i: i.value, index)
    value = network.value(func, x, plain)
    there = tree_map_only(Tensor, lambda i: i.to(network.path_device), plain)
    return moved(network, x, value, indexed(there))


@rule(Tensor.__setitem__)
def set_item(network: Network, func: Any, x: Any, index: Any, source: Any) -> Any:
    """``x[index] = source``: the paths of the overwritten entries end, those of the source go
    on."""
    from pxfast.paths.tensor import PathTensor

    value = network.value(torch.clone, x)
    network.value(func, value, index, source)
    if is_logits(x):
        return _overwritten(network, value, x, index, source)
    new = source.path if isinstance(source, PathTensor) else None
    given = [path for path in (x.path, new) if path is not None]
    if not given:
        return network.tensor(value, None)
    none = given[0].map(lambda m: m.new_zeros([1] * max(1, value.dim())))
    exponent, (old_mantissa, new_mantissa) = aligned([x.path or none, new or none])
    mantissa = old_mantissa.expand(value.shape).clone()
    target = mantissa[tree_map_only(Tensor, lambda i: i.to(mantissa.device), index)]
    if isinstance(source, PathTensor):
        new_mantissa = new_mantissa.expand(source.value.shape)
    else:
        new_mantissa = new_mantissa.new_zeros(())
    mantissa = mantissa.index_put(_as_indices(index, mantissa), new_mantissa.expand(target.shape))
    return network.tensor(value, PathSum(mantissa, exponent))


def _overwritten(network: Network, value: Any, logits: Any, index: Any, source: Any) -> Any:
    """Attention logits some of which are replaced: by others (with a bias), or by a constant."""
    if is_logits(source) or not network.squares:
        return masked_logits(network, value, logits, None)
    zeros = torch.zeros(value.shape, dtype=torch.float64, device=network.device)
    zeros[index] = torch.as_tensor(source).to(zeros)
    return masked_logits(network, value, logits, zeros)


def _as_indices(index: Any, like: Tensor) -> tuple[Tensor, ...]:
    """Any index as one flat index tensor per dimension."""
    positions = torch.arange(like.numel(), device=like.device).reshape(like.shape)
    flat = positions[tree_map_only(Tensor, lambda i: i.to(like.device), index)]
    return torch.unravel_index(flat, like.shape)


@rule(torch.where, Tensor.where)
def where(network: Network, func: Any, condition: Any, input: Any, other: Any) -> Any:
    """Entries of one tensor or the other. A condition computed from the data is a gate: in g both
    of its sides are open."""
    if func is Tensor.where:
        condition, input = input, condition
    value = network.value(torch.where, condition, input, other)
    if is_logits(input) and not hasattr(other, "path"):
        return masked_logits(network, value, input, _written(network, condition, 0.0, other))
    if is_logits(other) and not hasattr(input, "path"):
        return masked_logits(network, value, other, _written(network, condition, input, 0.0))
    return network.tensor(value, _chosen(network, condition, input, other))


@rule(*spellings("masked_fill"))
def masked_fill(network: Network, func: Any, input: Any, mask: Any, value: Any) -> Any:
    """The paths of filled entries end."""
    result = network.value(out_of_place(func), input, mask, value)
    if is_logits(input):
        return masked_logits(network, result, input, _written(network, mask, value, 0.0))
    return network.tensor(result, _chosen(network, mask, None, input))


def _written(network: Network, condition: Any, yes: Any, no: Any) -> Any:
    """What a choice between logits (here 0) and a constant adds to them, as far as it forbids."""
    from pxfast.paths.tensor import Interpreter

    if not network.squares:
        return None
    with Interpreter.running():  # in float64, which holds the lowest number of any dtype
        zeros = torch.zeros(condition.shape, dtype=torch.float64, device=condition.device)
        return torch.where(condition, zeros + yes, zeros + no)


def _chosen(network: Network, condition: Any, yes: Any, no: Any) -> PathSum | None:
    """The path sum of ``yes`` where the condition holds, of ``no`` elsewhere."""
    paths = [path_of(yes), path_of(no)]
    if network.gates or not hasattr(condition, "path"):
        holds = getattr(condition, "value", condition).to(network.path_device).bool()
        sides = zip(paths, (holds, ~holds), strict=True)
        paths = [None if path is None else path.times(side) for path, side in sides]
    given = [path for path in paths if path is not None]
    return total(given) if given else None


@rule(torch.cat, torch.concat, torch.concatenate)
def concatenate(network: Network, func: Any, tensors: Any, dim: int = 0) -> Any:
    """Concatenate paths; a tensor without a path adds 0 there. Exponents align first."""
    value = network.value(torch.cat, tensors, dim)
    if value.dim() > 1:  # torch skips tensors of shape [0], whatever the others' dimensions
        tensors = [tensor for tensor in tensors if tensor.dim() > 1]
    return network.tensor(value, _joined(network, tensors, dim, value.dim(), torch.cat))


@rule(torch.stack)
def stack(network: Network, func: Any, tensors: Any, dim: int = 0) -> Any:
    """As concatenate, along a new dimension."""
    value = network.value(torch.stack, tensors, dim)
    dim = dim % value.dim()
    return network.tensor(value, _joined(network, tensors, dim, value.dim(), torch.stack))


def _joined(network: Network, tensors: Any, dim: int, dims: int, join: Any) -> PathSum | None:
    paths = [path_of(tensor) for tensor in tensors]
    if all(path is None for path in paths):
        return None
    given = [path for path in paths if path is not None]
    empty = given[0].map(lambda m: m.new_zeros([1] * m.dim()))
    dim %= dims
    if join is torch.cat:
        lengths = [tensor.shape[dim] for tensor in tensors]
        runs = _in_runs([path if path is not None else empty for path in paths], lengths, dim)
        if runs is not None:
            return runs
    exponent, mantissas = aligned([path if path is not None else empty for path in paths])
    pieces = []
    for tensor, mantissa in zip(tensors, mantissas, strict=True):
        shape = list(tensor.shape if not hasattr(tensor, "value") else tensor.value.shape)
        along = [
            size
            if (join is torch.cat and d == dim) or any(m.shape[d] != 1 for m in mantissas)
            else 1
            for d, size in enumerate(shape)
        ]
        pieces.append(mantissa.expand(along))
    return PathSum(join(pieces, dim), exponent)


def _in_runs(paths: list[PathSum], lengths: list[int], dim: int) -> PathSum | None:
    """The path sum of tensors that are each constant along the dimension in which they are
    concatenated, or in runs of it; None of others, and where runs would be short."""
    pieces, runs = [], []
    for path, length in zip(paths, lengths, strict=True):
        if isinstance(path, Runs) and path.dim == dim:
            pieces.append(path.once)
            runs += path.lengths
        elif path.shape[dim] == 1:
            pieces.append(path)
            runs.append(length)
        else:
            return None
    if sum(runs) < 4 * len(runs):
        return None
    exponent, mantissas = aligned(pieces)
    shape = [max(sizes) for sizes in zip(*(m.shape for m in mantissas), strict=True)]
    wide = [m.expand([*shape[:dim], -1, *shape[dim + 1 :]]) for m in mantissas]
    return Runs(PathSum(torch.cat(wide, dim), exponent), dim, runs)


@rule(F.pad, torch.constant_pad_nd)
def pad(
    network: Network,
    func: Any,
    input: Any,
    pad: Any,
    mode: str = "constant",
    value: Any = None,
) -> Any:
    """A constant adds no path; reflected, replicated and circular entries bring theirs along."""
    if func is torch.constant_pad_nd:
        mode, value = "constant", mode if mode != "constant" else value
    padded = network.value(F.pad, input, pad, mode, value)
    if input.path is None:
        return network.tensor(padded, None)
    touched = [-1 - i for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]]
    mantissa = input.path.widened(input.value.shape, touched)
    if mode == "constant":
        pairs = [
            amount for i in range(len(pad) // 2) for amount in _pair(pad, i, -1 - i in touched)
        ]
        mantissa = F.pad(mantissa, pairs)
    else:
        mantissa = narrow(F.pad(input.path.widened(input.value.shape), pad, mode))
    return network.tensor(padded, PathSum(mantissa, input.path.exponent))


def _pair(pad: Any, i: int, touched: bool) -> tuple[int, int]:
    return (pad[2 * i], pad[2 * i + 1]) if touched else (0, 0)


@rule(F.fold)
def fold(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Overlapping windows add."""
    value = network.value(func, input, *args, **kwargs)
    if input.path is None:
        return network.tensor(value, None)
    mantissa = input.path.widened(input.value.shape, [-2, -1])
    return network.tensor(value, PathSum(func(mantissa, *args, **kwargs), input.path.exponent))


@rule(F.interpolate, F.upsample)
def interpolate(network: Network, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Linear interpolation is an average; the negative coefficients of bicubic interpolation count
    by size."""
    value = network.value(F.interpolate, input, *args, **kwargs)
    if input.path is None:
        return network.tensor(value, None)
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "nearest")
    shape = input.value.shape
    mantissa = input.path.widened(shape, range(2, len(shape)))
    if mode != "bicubic":
        mantissa = F.interpolate(mantissa, *args, **kwargs)
    else:
        rows = _coefficients(shape[-2], mantissa, args, kwargs, dim=-2)
        columns = _coefficients(shape[-1], mantissa, args, kwargs, dim=-1)
        mantissa = rows @ mantissa @ columns.T
    result = network.tensor(value, PathSum(mantissa, input.path.exponent))
    result.opening = input.opening
    return result


def _coefficients(size: int, like: Tensor, args: Any, kwargs: Any, dim: int) -> Tensor:
    """Absolute coefficients of bicubic interpolation along one dimension, [out, in]: it is
    separable."""
    other = like.shape[-1] if dim == -2 else like.shape[-2]
    units = torch.eye(size, dtype=like.dtype, device="cpu")
    images = (
        units[:, None, :, None].expand(-1, 1, size, other)
        if dim == -2
        else (units[:, None, None, :].expand(-1, 1, other, size))
    )
    result = F.interpolate(images, *args, **kwargs)
    line = result[:, 0, :, 0] if dim == -2 else result[:, 0, 0, :]
    return line.T.abs().to(like.device)


@rule(
    Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type,
    Tensor.type_as, Tensor.cpu, Tensor.cuda, Tensor.clone, torch.clone, Tensor.detach, torch.detach,
    Tensor.contiguous, Tensor.requires_grad_, Tensor.detach_, _getter("data"),
)  # fmt: skip
def same_entries(network: Network, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Casts and copies: the same entries, the same path."""
    if not hasattr(x, "path"):
        return _cast_like(network, x, *args, **kwargs)
    if func in (Tensor.cpu, Tensor.cuda, Tensor.to, Tensor.type) and not network.values:
        result = network.tensor(_cast_shape(x.value, args, kwargs), x.path)
    elif func in (Tensor.requires_grad_, Tensor.detach_):
        return x
    else:
        result = network.tensor(network.value(func, x, *args, **kwargs), x.path)
    result.opening, result.halves = x.opening, x.halves
    return result


def _cast_like(network: Network, tensor: Tensor, other: Any, *_: Any, **__: Any) -> Tensor:
    """A plain tensor, often a parameter, cast to the dtype and device of a path tensor."""
    arguments = {"dtype": other.value.dtype, "device": network.device}
    result = tensor.to(**arguments)
    network.weights.follow(Tensor.to, (tensor,), arguments, result)
    return result


def _cast_shape(value: Tensor, args: Any, kwargs: Any) -> Tensor:
    """A cast on the meta device: only the dtype can change."""
    dtypes = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
    others = [a for a in args if isinstance(a, Tensor)]
    dtype = dtypes[0] if dtypes else (others[0].dtype if others else value.dtype)
    return value.to(dtype)


def _copying(func: Any) -> Any:
    """The out-of-place spelling, and one that can be differentiated."""
    name = getattr(func, "__name__", "")
    if name == "native_channel_shuffle":
        return F.channel_shuffle
    return getattr(Tensor, name[:-1]) if name.endswith("_") and not name.endswith("__") else func
