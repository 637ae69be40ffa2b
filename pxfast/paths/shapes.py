"""Shapes: the meta device without torch's compiler.

A pass on shapes alone runs on the meta device. torch writes most of that device's kernels in
Python, and the first of them that runs imports the compiler's stack: seconds, in every process.
`Shapes` therefore answers the functions that networks are made of by itself: the shape from a
formula, the dtype by calling the function on single numbers. What it does not know goes to torch as
usual.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Shape = tuple[int, ...]
Formula = Callable[..., Shape]


class _ByShape:
    """The dispatch, in a class of its own: torch lets a mode's own one enter the compiler, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if types or func.is_view or kwargs.get("device") is not None:
            return func(*args, **kwargs)  # wrappers, views and copies speak for themselves
        operands = list(_tensors((*args, *kwargs.values())))
        if not any(operand.is_meta for operand in operands):
            return func(*args, **kwargs)
        if func in _FORMULAS:
            shape, dtype = _FORMULAS[func](*args, **kwargs), _common_dtype(args, kwargs)
        elif func in _REDUCTIONS:
            shape, dtype = _REDUCTIONS[func](*args, **kwargs), _dtype_of_numbers(func, args, kwargs)
        elif _is_entrywise(func):
            shape = common_shape(*(operand.shape for operand in operands))
            dtype = _dtype_of_numbers(func, args, kwargs)
        else:
            return func(*args, **kwargs)
        result = _laid_out(shape, dtype, operands, kwargs.get("memory_format"))
        return (result, result.new_empty(shape, dtype=torch.int64)) if func in _PICKS else result


class Shapes(_ByShape, TorchDispatchMode):  # type: ignore[misc]
    """While active, common functions of meta tensors only make a tensor of the right shape, dtype
    and, where they keep the shape, memory layout."""


def common_shape(*shapes: Sequence[int]) -> Shape:
    """The shape that tensors of these shapes broadcast to; torch.broadcast_shapes without the
    compiler."""
    dims = max(map(len, shapes))
    aligned = [(1,) * (dims - len(shape)) + tuple(shape) for shape in shapes]
    common = tuple(0 if 0 in sizes else max(sizes) for sizes in zip(*aligned, strict=True))
    for shape in aligned:
        if any(size not in (1, wide) for size, wide in zip(shape, common, strict=True)):
            raise RuntimeError(f"shapes {[list(shape) for shape in shapes]} do not broadcast")
    return common


@functools.cache
def _is_entrywise(func: Any) -> bool:
    schema = func._schema
    return (
        torch.Tag.pointwise in func.tags and len(schema.returns) == 1 and not schema.is_mutable
    ) or func in _UNTAGGED


def _laid_out(
    shape: Shape, dtype: torch.dtype, operands: list[Tensor], layout: torch.memory_format | None
) -> Tensor:
    """An empty tensor in the layout asked for, or that of the first operand of its shape."""
    if layout not in (None, torch.preserve_format):
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
    like = next((x for x in operands if x.shape == shape and x.is_meta), None)
    if like is None or like.is_contiguous():
        return torch.empty(shape, dtype=dtype, device="meta")
    order = sorted(range(len(shape)), key=like.stride, reverse=True)
    dense = torch.empty([shape[d] for d in order], dtype=dtype, device="meta")
    return dense.permute([order.index(d) for d in range(len(shape))])


def _dtype_of_numbers(func: Any, args: Any, kwargs: Any) -> torch.dtype:
    """The dtype that the function makes of one number in place of each tensor."""

    key = (func, *map(_kind, args), *((name, _kind(arg)) for name, arg in kwargs.items()))
    if key not in _DTYPES:

        def single(arg: Any) -> Any:
            return torch.ones([1] * arg.dim(), dtype=arg.dtype) if isinstance(arg, Tensor) else arg

        made = func(*map(single, args), **{name: single(arg) for name, arg in kwargs.items()})
        _DTYPES[key] = made.dtype
    return _DTYPES[key]


_DTYPES: dict[tuple[Any, ...], torch.dtype] = {}


def _kind(argument: Any) -> Any:
    """What the dtype of a result depends on: of a number its type, of a tensor the dtype and
    whether it is one."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.dim()
    return type(argument) if isinstance(argument, (int, float, list)) else argument


def _common_dtype(args: Any, kwargs: Any) -> torch.dtype:
    """What ``dtype=`` asks for, or what the dtypes of the first argument promote to."""
    if kwargs.get("dtype") is not None:
        return kwargs["dtype"]
    first, *rest = _tensors(args[:1])
    dtype = first.dtype
    for tensor in rest:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)


# ---- formulas ------------------------------------------------------------------------------------


def _like(x: Tensor, *_: Any, **__: Any) -> Shape:
    return tuple(x.shape)


def _reduced(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Shape:
    """Over some dimensions or, where none is given, over all."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    gone = {d % x.dim() for d in dims} if x.dim() else set()
    sizes = enumerate(x.shape)
    return tuple(1 if d in gone else size for d, size in sizes if keepdim or d not in gone)


def _variance(x: Tensor, dim: Any = None, *, keepdim: bool = False, **_: Any) -> Shape:
    return _reduced(x, dim, keepdim)


def _norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Shape:
    return _reduced(x, dim, keepdim)


def _product(x: Tensor, y: Tensor) -> Shape:
    return (*x.shape[:-1], y.shape[-1])


def _affine(bias: Tensor, x: Tensor, y: Tensor, **_: Any) -> Shape:
    return _product(x, y)


def _concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Shape:
    """Sizes add along ``dim``; torch lets empty vectors pass among tensors of any shape."""
    parts = [tensor for tensor in tensors if tensor.shape != (0,)] or tensors
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return tuple(shape)


def _stacked(tensors: Sequence[Tensor], dim: int = 0) -> Shape:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return tuple(shape)


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Shape:  # fmt: skip
    dims = weight.dim() - 2
    stride, padding, dilation = (_tuple(value, dims) for value in (stride, padding, dilation))
    extra = _tuple(output_padding, dims)
    return convolution_shape(
        x.shape, weight.shape, stride, padding, dilation, transposed, extra, groups
    )


def convolution_shape(
    shape: Sequence[int], weight: Sequence[int], stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Shape:  # fmt: skip
    """[N, O, *space] (or without N) of a convolution of an input and a weight of these shapes."""
    dims = len(weight) - 2
    lead, space = tuple(shape[: -dims - 1]), shape[-dims:]
    reach = [dilation[i] * (weight[2 + i] - 1) + 1 for i in range(dims)]
    if transposed:
        free = [(space[i] - 1) * stride[i] - 2 * padding[i] for i in range(dims)]
        sizes = [free[i] + reach[i] + output_padding[i] for i in range(dims)]
        return (*lead, weight[1] * groups, *sizes)
    sizes = [(space[i] + 2 * padding[i] - reach[i]) // stride[i] + 1 for i in range(dims)]
    return (*lead, weight[0], *sizes)


def _max_pooled(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Shape:  # fmt: skip
    kernel, padding, dilation = (_tuple(value, 2) for value in (kernel, padding, dilation))
    stride = _tuple(stride, 2) if stride else kernel
    sizes = []
    for i, size in enumerate(x.shape[-2:]):
        free = size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
        steps = -(-free // stride[i]) if ceil_mode else free // stride[i]
        if ceil_mode and steps * stride[i] >= size + padding[i]:
            steps -= 1  # a window must not begin in the padding behind the last entry
        sizes.append(steps + 1)
    return (*x.shape[:-2], *sizes)


def _average_pooled(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False, *_: Any
) -> Shape:
    return _max_pooled(x, kernel, stride, padding, 1, ceil_mode)


def _adaptive(x: Tensor, sizes: Sequence[int]) -> Shape:
    return (*x.shape[: -len(sizes)], *sizes)


def _padded(x: Tensor, pad: Sequence[int], value: Any = 0) -> Shape:
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] += pad[2 * i] + pad[2 * i + 1]
    return tuple(shape)


def _gathered(x: Tensor, dim: int, index: Tensor, **_: Any) -> Shape:
    return tuple(index.shape)


def _tuple(value: Any, dims: int) -> Shape:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values


_UNTAGGED = {
    aten.hardswish.default, aten.hardsigmoid.default, aten.roll.default,
    aten.threshold_backward.default, aten._softmax.default, aten._log_softmax.default,
}  # fmt: skip
_REDUCTIONS: dict[Any, Formula] = {
    aten.sum.default: _reduced, aten.sum.dim_IntList: _reduced, aten.mean.default: _reduced,
    aten.mean.dim: _reduced, aten.amax.default: _reduced, aten.amin.default: _reduced,
    aten.any.dim: _reduced, aten.var.correction: _variance, aten.std.correction: _variance,
    aten.norm.ScalarOpt_dim: _norm, aten.linalg_vector_norm.default: _norm,
}  # fmt: skip
_PICKS: dict[Any, Formula] = {
    aten.max_pool2d_with_indices.default: _max_pooled, aten.adaptive_max_pool2d.default: _adaptive,
}  # fmt: skip
_FORMULAS: dict[Any, Formula] = _PICKS | {
    aten.clone.default: _like, aten.ones_like.default: _like, aten.zeros_like.default: _like,
    aten.full_like.default: _like, aten.mm.default: _product, aten.bmm.default: _product,
    aten.addmm.default: _affine, aten.baddbmm.default: _affine, aten.cat.default: _concatenated,
    aten.stack.default: _stacked, aten.convolution.default: _convolved,
    aten.constant_pad_nd.default: _padded, aten.gather.default: _gathered,
    aten.avg_pool2d.default: _average_pooled, aten._adaptive_avg_pool2d.default: _adaptive,
}  # fmt: skip
