"""What `python bench/gpu.py` times of every op: arguments, floors, and the same in plain torch.

A case builds its arguments on any device, so that tests run all of them, small, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench._harness import Work
from pxfast import ops
from pxfast.reference import gate as gate_reference
from pxfast.reference import masked_ones as ones_reference
from pxfast.reference import squared_attention as attention_reference
from pxfast.reference import squared_conv2d as convolution_reference
from pxfast.reference import squared_linear as linear_reference

Pair = tuple[Callable[..., object], Callable[..., object]]  # pxfast's and plain torch's


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        what: the op and its pass.
        size: in words.
        bytes: that must move.
        flops: that must be done.
        rate: the ceiling that flops are compared with, "float32" or "bfloat16".
        build: makes, on a device, one set of arguments of both candidates.
        pair: pxfast's function and plain torch's, of those arguments.
        compiled: whether torch.compile of plain torch is timed as well.
        precision: of float32 products, as torch.set_float32_matmul_precision takes it.
    """

    what: str
    size: str
    bytes: float
    flops: float
    rate: str
    build: Callable[[torch.device], tuple[object, ...]]
    pair: Pair
    compiled: bool = False
    precision: str = "highest"

    def floor(self, copied: float, rates: dict[str, float]) -> float:
        """Seconds that nothing can go below, from bytes copied a second and flops a second."""
        return max(self.bytes / copied, self.flops / rates[self.rate])


def linear(
    name: str,
    O: int,
    K: int,
    T: int,
    dtype: torch.dtype,
    compiled: bool = False,
    precision: str = "highest",
) -> Case:
    """Forward, backward and saliency of squared_linear."""

    def build(device: torch.device) -> tuple[object, ...]:
        weight = torch.randn(O, K, device=device).to(dtype)
        x, dy = torch.rand(T, K, device=device), torch.rand(T, O, device=device)
        return dy, x, weight, None, torch.zeros(O, K, device=device)

    def ours(dy: Tensor, x: Tensor, weight: Tensor, mask: None, saliency: Tensor) -> object:
        ops.squared_linear(x, weight)
        return ops.squared_linear_backward(dy, x, weight, mask, saliency)

    def plain(dy: Tensor, x: Tensor, weight: Tensor, mask: None, saliency: Tensor) -> object:
        y = linear_reference.squared_linear(x, weight)
        dx = linear_reference.squared_linear_backward(dy, x, weight, mask, saliency)
        return y, dx

    b = torch.empty((), dtype=dtype).element_size()
    moved, flops = (2 * b + 8) * O * K + 8 * T * (O + K), 6 * T * O * K
    size = f"{name} {O}×{K}, T = {T}, {str(dtype)[6:]}"
    size += f", {precision} precision" if precision != "highest" else ""
    rate = "float32" if dtype == torch.float32 and precision == "highest" else "bfloat16"
    return Case("squared_linear, both passes", size, moved, flops, rate, build, (ours, plain),
                compiled, precision)  # fmt: skip


def convolution(C: int, H: int, O: int, kernel: int, stride: int, groups: int = 1) -> Case:
    """Forward, backward and saliency of squared_conv2d at batch 1."""
    padding = kernel // 2
    out = (H + 2 * padding - kernel) // stride + 1
    geometry = ([stride] * 2, [padding] * 2, [1, 1], groups)

    def build(device: torch.device) -> tuple[object, ...]:
        shape = (O, C // groups, kernel, kernel)
        dy, x = torch.rand(1, O, out, out, device=device), torch.rand(1, C, H, H, device=device)
        return dy, x, torch.randn(shape, device=device), torch.zeros(shape, device=device)

    def ours(dy: Tensor, x: Tensor, weight: Tensor, saliency: Tensor) -> object:
        ops.squared_conv2d(x, weight, None, *geometry)
        return ops.squared_conv2d_backward(dy, x, weight, None, saliency, *geometry)

    def plain(dy: Tensor, x: Tensor, weight: Tensor, saliency: Tensor) -> object:
        y = convolution_reference.squared_conv2d(x, weight, None, *geometry)
        dx = convolution_reference.squared_conv2d_backward(dy, x, weight, None, saliency, *geometry)
        return y, dx

    entries = O * C // groups * kernel**2
    moved, flops = 16 * entries + 8 * (C * H * H + O * out * out), 6 * entries * out * out
    size = f"{C}×{H}×{H} → {O}, {kernel}×{kernel}, stride {stride}"
    size += f", {groups} groups" if groups > 1 else ""
    return Case("squared_conv2d, both passes", size, moved, flops, "float32", build, (ours, plain))


def ones_linear(name: str, O: int, K: int, T: int) -> Case:
    """Path sums of the data pass through a mask of half the weights."""

    def build(device: torch.device) -> tuple[object, ...]:
        mask = torch.rand(O, K, device=device) < 0.5
        return torch.rand(T, K, device=device), mask, ops.pack_ones(mask)

    def ours(x: Tensor, mask: Tensor, bits: Tensor) -> object:
        return ops.masked_ones_linear(x, bits)

    def plain(x: Tensor, mask: Tensor, bits: Tensor) -> object:
        return x @ mask.to(x.dtype).T

    moved, size = O * K / 8 + 4 * T * (O + K), f"{name} {O}×{K}, T = {T}, float32"
    return Case("masked_ones_linear", size, moved, 2 * T * O * K, "float32", build, (ours, plain))


def ones_convolution(N: int, C: int, H: int, O: int, kernel: int, groups: int = 1) -> Case:
    """The same through a convolution without stride."""
    geometry = ([1, 1], [kernel // 2] * 2, [1, 1], groups)

    def build(device: torch.device) -> tuple[object, ...]:
        mask = torch.rand(O, C // groups, kernel, kernel, device=device) < 0.5
        return torch.rand(N, C, H, H, device=device), mask, ops.pack_ones(mask)

    def ours(x: Tensor, mask: Tensor, bits: Tensor) -> object:
        return ops.masked_ones_conv2d(x, bits, kernel, *geometry)

    def plain(x: Tensor, mask: Tensor, bits: Tensor) -> object:
        return torch.conv2d(x, mask.to(x.dtype), None, *geometry)

    terms, positions = O * C // groups * kernel**2, N * H * H
    moved, flops = terms / 8 + 4 * positions * (C + O), 2 * terms * positions
    size = f"{N}×{C}×{H}×{H} → {O}, {kernel}×{kernel}, {groups} groups"
    return Case("masked_ones_conv2d", size, moved, flops, "float32", build, (ours, plain))


def packing(name: str, O: int, K: int) -> Case:
    """A mask to bits."""

    def build(device: torch.device) -> tuple[object, ...]:
        return (torch.rand(O, K, device=device) < 0.5,)

    return Case("pack_ones", f"{name} {O}×{K}", 9 * O * K / 8, 0, "float32", build,
                (ops.pack_ones, ones_reference.pack_ones))  # fmt: skip


def activation(kind: str, shape: Sequence[int], dtype: torch.dtype) -> Case:
    """gate behind an unpruned layer: one path sum for all channels, the last dimension."""

    def build(device: torch.device) -> tuple[object, ...]:
        z = torch.randn(*shape, device=device).to(dtype)
        return z, torch.rand(*shape[:-1], 1, device=device)

    def ours(z: Tensor, path: Tensor) -> object:
        return ops.gate(z, path, kind)

    def plain(z: Tensor, path: Tensor) -> object:
        return gate_reference.gate(z, path, kind, value=torch.empty_like(z))

    b, n = torch.empty((), dtype=dtype).element_size(), torch.Size(shape).numel()
    moved, size = (2 * b + 4) * n, f"{kind} {'×'.join(map(str, shape))}, {str(dtype)[6:]}"
    return Case("gate", size, moved, 0, "float32", build, (ours, plain))


def attention(name: str, N: int, H: int, T: int, D: int, P: int, dtype: torch.dtype) -> Case:
    """Output and path sums of squared_attention."""

    def build(device: torch.device) -> tuple[object, ...]:
        q, k, v = torch.randn(N, T, 3, H, D, device=device).to(dtype).permute(2, 0, 3, 1, 4)
        return q, k, torch.rand(N, 1 if P == 1 else H, T, P, device=device), v

    def ours(q: Tensor, k: Tensor, path: Tensor, v: Tensor) -> object:
        return ops.squared_attention(q, k, path, v)

    def plain(q: Tensor, k: Tensor, path: Tensor, v: Tensor) -> object:
        return attention_reference.squared_attention(q, k, path, v, None, D**-0.5)

    b = torch.empty((), dtype=dtype).element_size()
    moved, flops = N * H * T * (4 * b * D + 8 * P), 2 * N * H * T * T * (2 * D + P)
    size = f"{name} {N}×{H}×{T}×{D}, {P} columns, {str(dtype)[6:]}"
    return Case("squared_attention", size, moved, flops, "float32", build, (ours, plain))


def attention_backward(name: str, N: int, H: int, T: int, D: int, P: int) -> Case:
    """Path sums back through A∘A."""

    def build(device: torch.device) -> tuple[object, ...]:
        q, k = torch.randn(2, N, H, T, D, device=device)
        return torch.rand(N, H, T, P, device=device), q, k

    def ours(dy: Tensor, q: Tensor, k: Tensor) -> object:
        return torch.ops.pxfast.squared_attention_backward(dy, q, k, None, D**-0.5)

    def plain(dy: Tensor, q: Tensor, k: Tensor) -> object:
        return attention_reference.squared_attention_backward(dy, q, k, None, D**-0.5)

    moved, flops = N * H * T * (8 * D + 8 * P), 2 * N * H * T * T * (2 * D + P)
    size = f"{name} {N}×{H}×{T}×{D}, {P} columns, float32"
    return Case("squared_attention, backward", size, moved, flops, "float32", build, (ours, plain))


def selection(name: str, count: int, tensors: int) -> Case:
    """Threshold and masks at 2% density, against torch.kthvalue and a comparison."""
    keep, each = max(1, count // 50), count // tensors

    def build(device: torch.device) -> tuple[object, ...]:
        return ([torch.rand(each, device=device) for _ in range(tensors)],)

    def ours(scores: list[Tensor]) -> object:
        return ops.write_masks(scores, ops.select_threshold(scores, keep))

    def plain(scores: list[Tensor]) -> object:
        whole = torch.cat(scores)
        threshold = torch.kthvalue(whole, whole.numel() - keep + 1).values
        return [tensor >= threshold for tensor in scores]

    size = f"{name}, {count / 1e6:.3g} million scores"
    return Case("select_threshold, write_masks", size, 13 * count, 0, "float32", build,
                (ours, plain))  # fmt: skip


def cases() -> list[Case]:
    """All of them, at realistic sizes."""
    f32, bf16 = torch.float32, torch.bfloat16
    sizes = {"ViT-B": (3072, 768), "ViT-L": (4096, 1024), "ViT-H": (5120, 1280)}
    vits = [(name, *size) for name, size in (sizes | {"ViT-g": (6144, 1408)}).items()]
    return [
        *(linear(*vit, T=1, dtype=f32, compiled=vit[0] == "ViT-g") for vit in vits),
        *(linear(*vit, T=1, dtype=bf16) for vit in vits[1::2]),
        linear(*vits[1], T=257, dtype=f32),
        linear(*vits[1], T=4096, dtype=bf16, compiled=True),
        *(linear(*vits[1], T=4096, dtype=dtype, precision=precision)
          for dtype in (bf16, f32) for precision in ("high", "medium")),
        *(convolution(*layer) for layer in ((64, 56, 64, 3, 1), (256, 14, 256, 3, 1),
                                            (512, 7, 2048, 1, 1), (96, 56, 96, 3, 1, 96),
                                            (96, 56, 96, 7, 1, 96), (960, 14, 960, 5, 2, 960))),
        packing(*vits[1]),
        ones_linear(*vits[1], T=1),
        ones_linear(*vits[1], T=4096),
        ones_convolution(16, 256, 14, 256, 3),
        *(activation("gelu", (64, 257, 4096), dtype) for dtype in (f32, bf16)),
        attention("ViT-L", 16, 16, 257, 64, 1, f32),
        attention("ViT-L", 16, 16, 257, 64, 64, bf16),
        attention_backward("ViT-L", 16, 16, 257, 64, 64),
        selection("ViT-L", 304_000_000, 97),
        selection("ViT-g", 1_100_000_000, 161),
    ]  # fmt: skip


def ring(case: Case, device: torch.device, fill: int) -> list[tuple[object, ...]]:
    """As many sets of arguments as hold `fill` bytes together, so that no cache holds them."""
    first = case.build(device)
    size = sum(t.nbytes for t in _tensors(first))
    more = min(32, -(-fill // max(1, size))) - 1
    return [first, *(case.build(device) for _ in range(more))]


def over(step: Callable[..., object], arguments: list[tuple[object, ...]]) -> Work:
    """Calls `step` with the next set of arguments, in turn."""
    turn = iter(range(1 << 60))

    def work() -> object:
        return step(*arguments[next(turn) % len(arguments)])

    return work


def _tensors(arguments: tuple[object, ...]) -> list[Tensor]:
    flat = (a if isinstance(a, list) else [a] for a in arguments)
    return [t for several in flat for t in several if isinstance(t, Tensor)]
