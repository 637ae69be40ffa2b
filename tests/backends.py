"""What runs an op in the tests. Every backend takes and returns CPU tensors of any strides.

fallback: the reference, as ops use it on a device without kernels; cpu-base, cpu-avx2, cpu-avx512:
the CPU kernels of each instruction set; emulated: the CUDA kernels, executed on the CPU
(tests/emulated); cuda: a GPU.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from emulated import (
    attention_kernels,
    build,
    conv_kernels,
    gate_kernels,
    kernels,
    ones_kernels,
    select_kernels,
)
from torch import Tensor

from pxfast import _native
from pxfast.reference.gate import GATES


class Backend:
    """Runs ops by their name in ``torch.ops.pxfast``.

    Attributes:
        name: for pytest.
        device: what PXFAST_REQUIRE calls it.
        unavailable: why it cannot run here, or None.
    """

    name: str
    device: str
    unavailable: str | None = None

    def __call__(self, op: str, *args: Any) -> Any:
        """The op's result; arguments that it changes are changed in place."""
        raise NotImplementedError


class Fallback(Backend):
    """The reference. MTIA stands for any device that has no kernels."""

    name = device = "fallback"

    def __call__(self, op: str, *args: Any) -> Any:
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.MTIA)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pxfast: no kernels")
            return getattr(torch.ops.pxfast, op).default.redispatch(keys, *args)


class Native(Backend):
    """The CPU kernels of one instruction set."""

    device = "cpu"

    def __init__(self, isa: str) -> None:
        self.name, self.isa, self.unavailable = f"cpu-{isa}", isa, _native.problem

    def __call__(self, op: str, *args: Any) -> Any:
        with instruction_set(self.isa):
            return getattr(torch.ops.pxfast, op)(*args)


class Emulated(Backend):
    """The CUDA kernels, executed on the CPU; copies arguments flat as csrc/binding does."""

    name = device = "emulated"

    def __init__(self) -> None:
        try:
            build.compiler()
            build.require("plain")
        except build.Unavailable as reason:
            self.unavailable = str(reason)

    def __call__(self, op: str, *args: Any) -> Any:
        return getattr(self, op)(*args)

    def squared_linear(
        self, x: Tensor, weight: Tensor, mask: Tensor | None = None, precision: str = "highest"
    ) -> Tensor:
        y = kernels.squared_linear(_rows(x), _array(weight), _array(mask), precision)
        return torch.from_numpy(y).reshape(*x.shape[:-1], weight.shape[0])

    def squared_linear_backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        saliency: Tensor,
        with_dx: bool = True,
        add: bool = True,
        precision: str = "highest",
    ) -> Tensor:
        sums = _array(saliency if add else torch.zeros_like(saliency)).copy()
        arrays = _rows(dy), _rows(x), _array(weight), _array(mask), sums
        dx = kernels.squared_linear_backward(*arrays, with_dx, precision)
        saliency.copy_(torch.from_numpy(sums))
        return x.new_empty(0) if dx is None else torch.from_numpy(dx).reshape(x.shape)

    def score_histogram(
        self, scores: list[Tensor], alive: list[Tensor | None], low: int, shift: int, bits: int
    ) -> Tensor:
        arrays = list(map(_array, scores)), list(map(_array, alive))
        return torch.from_numpy(select_kernels.score_histogram(*arrays, low, shift, bits))

    def write_masks(
        self, scores: list[Tensor], alive: list[Tensor | None], key: int, ties: int, equal: int
    ) -> list[Tensor]:
        arrays = list(map(_array, scores)), list(map(_array, alive))
        masks = select_kernels.write_masks(*arrays, key, ties, equal)
        assert all((mask <= 1).all() for mask in masks)
        return [torch.from_numpy(mask).bool() for mask in masks]

    def squared_attention(
        self,
        q: Tensor,
        k: Tensor,
        path: Tensor,
        v: Tensor | None,
        mask: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        arrays = map(_array, (q, k, path, v, mask))
        output, paths = attention_kernels.squared_attention(*arrays, scale)  # type: ignore[arg-type]
        by_tokens = q.new_empty(0) if output is None else _heads(output, q.dtype)
        return by_tokens, _heads(paths, path.dtype)

    def squared_attention_backward(
        self, dy: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        arrays = map(_array, (dy, q, k, mask))
        dpath = attention_kernels.squared_attention_backward(*arrays, scale)  # type: ignore[arg-type]
        return _heads(dpath, dy.dtype)

    def squared_conv2d(
        self, x: Tensor, weight: Tensor, mask: Tensor | None, *geometry: Any
    ) -> Tensor:
        arrays = map(_array, (x, weight, mask))
        return torch.from_numpy(conv_kernels.Convolution(*arrays, *geometry).forward())  # type: ignore[arg-type]

    def squared_conv2d_backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        saliency: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        with_dx: bool = True,
        add: bool = True,
    ) -> Tensor:
        sums = _array(saliency if add else torch.zeros_like(saliency)).copy()
        arrays = map(_array, (x, weight, mask))
        call = conv_kernels.Convolution(*arrays, stride, padding, dilation, groups)  # type: ignore[arg-type]
        dx = call.backward(_array(dy), sums, with_dx)
        saliency.copy_(torch.from_numpy(sums))
        return x.new_empty(0) if dx is None else torch.from_numpy(dx)

    def pack_ones(self, mask: Tensor) -> Tensor:
        rows = mask.reshape(mask.shape[0], mask.shape[1:].numel())
        return torch.from_numpy(ones_kernels.pack_ones(_array(rows)).view(np.int32))  # type: ignore[arg-type]

    def masked_ones_linear(self, x: Tensor, bits: Tensor) -> Tensor:
        y = ones_kernels.masked_ones_linear(_rows(x), _array(bits))  # type: ignore[arg-type]
        return torch.from_numpy(y).reshape(*x.shape[:-1], bits.shape[0])

    def masked_ones_linear_backward(self, dy: Tensor, bits: Tensor, inputs: int) -> Tensor:
        transposed = ones_kernels.transpose_ones(_array(bits), inputs)  # type: ignore[arg-type]
        dx = ones_kernels.masked_ones_linear(_rows(dy), transposed)
        return torch.from_numpy(dx).reshape(*dy.shape[:-1], inputs)

    def masked_ones_conv2d(self, x: Tensor, bits: Tensor, *geometry: Any) -> Tensor:
        arrays = map(_array, (x, bits))
        return torch.from_numpy(ones_kernels.masked_ones_conv2d(*arrays, *geometry))  # type: ignore[arg-type]

    def gate(
        self,
        z: Tensor,
        path: Tensor,
        kind: str,
        a: float = 0.0,
        b: float = 0.0,
        value: Tensor | None = None,
        over_channels: bool = False,
    ) -> Tensor:
        shape = torch.Size([1 if over_channels and d == 1 else n for d, n in enumerate(z.shape)])
        if z.numel() == 0:
            return path.new_zeros(shape)
        if over_channels:
            sizes = (*z.shape[:2], math.prod(z.shape[2:]))
            if any(size != 1 for size in path.shape[2:]):
                path = path.expand(*path.shape[:2], *z.shape[2:])
            narrow = (*path.shape[:2], math.prod(path.shape[2:]))
        else:
            sizes, narrow = _joined(z.shape, path.shape)
            if len(sizes) > 3:
                return self.gate(z, path.expand(z.shape), kind, a, b, value)
        z_in, path_in = _array(z), _array(path)
        values = None if value is None else np.empty_like(z_in)
        gated = gate_kernels.gate(
            z_in.reshape(sizes), path_in.reshape(narrow), list(GATES).index(kind), a, b, values,
            over_b=over_channels,
        )  # fmt: skip
        if value is not None:
            stored = torch.from_numpy(values).reshape(value.shape)
            value.copy_(stored.view(value.dtype) if value.dtype == torch.bfloat16 else stored)
        return torch.from_numpy(gated).reshape(shape)


class Cuda(Backend):
    """The CUDA kernels on a GPU."""

    name = device = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            self.unavailable = "torch sees no GPU"
        elif _native.describe().get("cuda", "not built") == "not built":
            self.unavailable = "pxfast was built without CUDA kernels"

    def __call__(self, op: str, *args: Any) -> Any:
        there = [_to_cuda(a) for a in args]
        result = getattr(torch.ops.pxfast, op)(*there)
        for here, copy in zip(args, there, strict=True):
            if isinstance(here, Tensor):
                _storage(here).copy_(_storage(copy))
        return [r.cpu() for r in result] if isinstance(result, (list, tuple)) else result.cpu()


@contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    """Caps the instruction set of the CPU kernels."""
    before = os.environ.get("PXFAST_CPU_ISA")
    os.environ["PXFAST_CPU_ISA"] = isa
    try:
        yield
    finally:
        if before is None:
            del os.environ["PXFAST_CPU_ISA"]
        else:
            os.environ["PXFAST_CPU_ISA"] = before


def instruction_sets() -> list[str]:
    """Those that this processor has kernels for; base alone where there is no library."""
    found = []
    for isa in ("base", "avx2", "avx512"):
        with instruction_set(isa):
            if _native.problem is None and torch.ops.pxfast.cpu_isa() == isa:
                found.append(isa)
    return found or ["base"]


def _rows(tensor: Tensor) -> kernels.Array:
    """Leading dimensions flattened, contiguous."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1]).contiguous().numpy()


def _joined(shape: torch.Size, narrow: torch.Size) -> tuple[list[int], list[int]]:
    """Both shapes with neighbours joined where both are wide or both narrow; three or more."""
    sizes, paths = [], []
    for size, path in zip(shape, narrow, strict=True):
        if size > 1 and sizes and (path == 1) == (paths[-1] == 1):
            sizes[-1], paths[-1] = sizes[-1] * size, paths[-1] * path
        elif size > 1:
            sizes.append(size)
            paths.append(path)
    missing = [1] * (3 - len(sizes))
    return missing + sizes, missing + paths


def _array(tensor: Tensor | None) -> kernels.Array | None:
    if tensor is None:
        return None
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.contiguous().view(torch.uint16)
    return np.ascontiguousarray(tensor.numpy())


def _heads(array: kernels.Array, dtype: torch.dtype) -> Tensor:
    """[N, rows, H, columns] as [N, H, rows, columns]."""
    return torch.from_numpy(array).view(dtype).transpose(1, 2)


def _storage(tensor: Tensor) -> Tensor:
    """All of a tensor's memory."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided([size], [1], 0)


def _to_cuda(argument: Any) -> Any:
    """Copies of tensors, also in a list, with the same strides, offset and surroundings."""
    if isinstance(argument, list):
        return [_to_cuda(entry) for entry in argument]
    if not isinstance(argument, Tensor):
        return argument
    there = _storage(argument).cuda()
    return there.as_strided(argument.shape, argument.stride(), argument.storage_offset())


BACKENDS = [Fallback(), *map(Native, instruction_sets()), Emulated(), Cuda()]


def need(device: str, unavailable: str | None) -> None:
    """Skip a test whose device is missing; fail it where PXFAST_REQUIRE names the device."""
    if unavailable is not None and device in os.environ.get("PXFAST_REQUIRE", "").split(","):
        pytest.fail(f"PXFAST_REQUIRE={device}: {unavailable}")
    if unavailable is not None:
        pytest.skip(f"{device}: {unavailable}")
