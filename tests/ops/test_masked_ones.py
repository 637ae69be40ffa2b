"""masked_ones on every backend, against float64; as ops of torch; masks in bits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from backends import Backend, instruction_set, instruction_sets, need
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import sum_of_products
from torch import Tensor

import pxfast.reference.masked_ones as reference
from pxfast import _native, ops

F32, F64 = torch.float32, torch.float64

# T, O, K: empty, single, around words of 32 bits, chunks of 64 inputs, lines of 16 positions
# (float64: 8), ranges of outputs; on CUDA 8 tokens, and tiles of 16 to 128.
SHAPES = [
    *itertools.product((0, 2, 9), (0, 3), (0, 5)),
    (1, 1, 1),
    (1, 33, 31),
    (1, 70, 1089),
    (2, 33, 64),
    (7, 17, 257),
    (8, 65, 32),
    (9, 47, 49),
    (15, 130, 63),
    (16, 16, 65),
    (17, 257, 128),
    (33, 96, 7),
    (65, 31, 36),
]

# x [N, C, H, W], O, kernel, stride, padding, dilation, groups.
GEOMETRIES: list[tuple[Any, ...]] = [
    ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 7, 6), 5, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 4, 9, 8), 6, (3, 2), (2, 1), (1, 0), (1, 2), 2),
    ((2, 6, 5, 5), 6, (3, 3), (2, 2), (1, 1), (1, 1), 6),
    ((1, 33, 6, 5), 34, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((1, 3, 12, 11), 4, (5, 3), (3, 2), (2, 3), (2, 1), 1),
    ((3, 2, 8, 8), 3, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    ((1, 2, 3, 40), 3, (1, 3), (1, 1), (0, 1), (1, 1), 1),
    ((0, 2, 4, 4), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 0, 4, 4), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
]


def random_mask(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def random_sums(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=F64).to(dtype)


def check(actual: Tensor, exact: Tensor, magnitude: Tensor, terms: int, dtype: torch.dtype) -> None:
    """Compare, errors relative to the sums of the terms' magnitudes."""
    assert actual.dtype == dtype and actual.shape == exact.shape
    error = (actual.double() - exact).abs()
    assert (error <= sum_of_products(terms, dtype) * magnitude).all(), error.max()


def check_linear(backend: Backend, T: int, O: int, K: int, dtype: torch.dtype) -> None:
    mask = random_mask(O, K)
    x, dy = random_sums(T, K, dtype=dtype), random_sums(T, O, dtype=dtype, seed=2)
    bits = backend("pack_ones", mask)
    assert torch.equal(bits, reference.pack_ones(mask))
    if K % 32 and O:
        bits[:, -1] |= -1 << K % 32  # what lies past the last input does not count
    y, dx = (
        backend("masked_ones_linear", x, bits),
        backend("masked_ones_linear_backward", dy, bits, K),
    )
    ones, x, dy = mask.double(), x.double(), dy.double()
    check(y, x @ ones.T, x.abs() @ ones.T, K, dtype)
    check(dx, dy @ ones, dy.abs() @ ones, O, dtype)


def convolve(x: Tensor, mask: Tensor, geometry: Any) -> Tensor:
    """In float64; torch does not know empty sums."""
    stride, padding, dilation, groups = geometry
    if x.numel() == 0:
        axes = zip(x.shape[2:], mask.shape[2:], stride, padding, dilation, strict=True)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
        return torch.zeros(x.shape[0], mask.shape[0], *out, dtype=F64)
    return torch.conv2d(x.double(), mask.double(), None, stride, padding, dilation, groups)


def check_conv2d(backend: Backend, geometry: Any, dtype: torch.dtype) -> None:
    shape, outputs, kernel, *rest = geometry
    mask = random_mask(outputs, shape[1] // rest[3], *kernel)
    x, bits = random_sums(*shape, dtype=dtype), backend("pack_ones", mask)
    y = backend("masked_ones_conv2d", x, bits, list(kernel), *rest)
    assert y.is_contiguous()
    exact, magnitude = convolve(x, mask, rest), convolve(x.abs(), mask, rest)
    check(y, exact, magnitude, mask[:1].numel(), dtype)


def test_the_reference_is_the_formula():
    mask, x = random_mask(3, 40), random_sums(2, 40, dtype=F64)
    bits = reference.pack_ones(mask)
    assert bits.dtype == torch.int32 and list(bits.shape) == [3, 2]
    for o, r in itertools.product(range(3), range(40)):
        assert (int(bits[o, r // 32]) >> r % 32) & 1 == int(mask[o, r])
    assert torch.equal(reference.unpack_ones(bits, 40), mask)
    torch.testing.assert_close(reference.masked_ones_linear(x, bits), x @ mask.double().T)
    dy = random_sums(2, 3, dtype=F64)
    dx = reference.masked_ones_linear_backward(dy, bits, 40)
    torch.testing.assert_close(dx, dy @ mask.double())


@pytest.mark.parametrize("dtype", [F32, F64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_of_masked_ones(backend: Backend, shape: tuple[int, int, int], dtype: torch.dtype):
    check_linear(backend, *shape, dtype)


@pytest.mark.parametrize("dtype", [F32, F64], ids=lambda d: str(d)[6:])
def test_values_of_convolutions_with_masked_ones(backend: Backend, dtype: torch.dtype):
    for geometry in GEOMETRIES:
        check_conv2d(backend, geometry, dtype)


@pytest.mark.parametrize("isa", instruction_sets())
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_sizes_on_the_cpu(isa: str, data: st.DataObject):
    need("cpu", _native.problem)
    backend = _Op(isa)
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    dtype = data.draw(st.sampled_from([F32, F64]))
    check_linear(backend, draw(0, 40), draw(0, 70), draw(0, 140), dtype)
    kernel, stride = (draw(1, 4), draw(1, 4)), (draw(1, 3), draw(1, 3))
    padding, dilation = (draw(0, 3), draw(0, 3)), (draw(1, 2), draw(1, 2))
    least = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    groups, samples = draw(1, 3), draw(1, 2)
    space = [draw(size, size + 12) for size in least]
    shape = (samples, groups * draw(1, 12), *space)
    outputs = groups * draw(1, 10)
    check_conv2d(backend, (shape, outputs, kernel, stride, padding, dilation, groups), dtype)


class _Op(Backend):
    """The op as the CPU runs it under one instruction set."""

    device = "cpu"

    def __init__(self, isa: str = "") -> None:
        self.name = self.isa = isa

    def __call__(self, op: str, *args: Any) -> Any:
        with instruction_set(self.isa):
            return getattr(torch.ops.pxfast, op)(*args)


@pytest.mark.parametrize("way", ["step", "transposed", "offset", "expanded"])
def test_strides_of_masked_ones(way: str):
    x, mask = random_sums(6, 40, dtype=F32), random_mask(40, 40)
    other = {
        "step": lambda t: t.repeat_interleave(2, 1)[:, ::2],
        "transposed": lambda t: t.T.contiguous().T,
        "offset": lambda t: torch.cat([torch.full_like(t[:1], 1), t])[1:],
        "expanded": lambda t: t,
    }[way]
    if way == "expanded":
        x = x[:1].expand(6, -1)
    bits = ops.pack_ones(mask)
    y = ops.masked_ones_linear(x.contiguous(), bits)
    assert torch.equal(ops.pack_ones(other(mask)), bits)
    assert torch.equal(ops.masked_ones_linear(other(x), other(bits)), y)
    images = x.reshape(2, 4, 5, 6).to(memory_format=torch.channels_last)
    bits = ops.pack_ones(mask[:, :36].reshape(40, 4, 3, 3))
    expected = ops.masked_ones_conv2d(images.contiguous(), bits, 3, padding=1)
    assert torch.equal(ops.masked_ones_conv2d(images, bits, 3, padding=1), expected)


@pytest.mark.parametrize("shape", [(1, 700, 65), (40, 3000, 33), (100, 40, 300)], ids=str)
def test_threads_change_no_bit_of_masked_ones(shape: tuple[int, int, int]):
    need("cpu", _native.problem)
    T, O, K = shape
    x, bits = random_sums(T, K, dtype=F32), ops.pack_ones(random_mask(O, K))
    images = random_sums(2, 4, 9, 9, dtype=F32)
    ones = ops.pack_ones(random_mask(300, 4, 3, 3))
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            y = ops.masked_ones_linear(x, bits), ops.masked_ones_conv2d(images, ones, 3, padding=1)
            results.append((*y, ops.masked_ones_linear_backward(y[0], bits, K)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_what_lies_around_the_arguments_is_neither_used_nor_changed(backend: Backend):
    if backend.device == "fallback":
        return
    x, mask = random_sums(9, 33, dtype=F32), random_mask(35, 33)
    bits = backend("pack_ones", mask)
    around = torch.full((11 * 33,), torch.nan)
    inside = around[33:-33].view(9, 33)
    inside.copy_(x)
    y = backend("masked_ones_linear", inside, bits)
    assert torch.equal(y, backend("masked_ones_linear", x, bits)) and y.isfinite().all()
    images = around[33:-33].view(1, 3, 9, 11)
    ones = backend("pack_ones", random_mask(35, 3, 3, 3))
    geometry = [3, 3], [1, 1], [1, 1], [1, 1], 1
    y = backend("masked_ones_conv2d", images, ones, *geometry)
    assert y.isfinite().all()
    assert around[:33].isnan().all() and around[-33:].isnan().all()


def test_gradients_of_masked_ones():
    x = random_sums(2, 3, 40, dtype=F64).requires_grad_()
    bits = ops.pack_ones(random_mask(7, 40))
    assert torch.autograd.gradcheck(lambda x: ops.masked_ones_linear(x, bits), (x,))


@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 5, 7), (4,), (0, 3), (3, 0)], ids=str)
def test_masks_come_back_from_their_bits(shape: tuple[int, ...]):
    mask = random_mask(*shape)
    bits = ops.pack_ones(mask)
    assert list(bits.shape) == [shape[0], -(-math.prod(shape[1:]) // 32)]
    assert torch.equal(ops.unpack_ones(bits, shape), mask)


def test_where_masked_ones_pay():
    need("cpu", _native.problem)
    x = torch.ones(2, 8)
    assert ops.masked_ones_pays(x, 64) and ops.masked_ones_pays(x.double(), 64)
    assert not any(ops.masked_ones_pays(*case) for case in ((x, 63), (x.half(), 64)))
    assert not ops.masked_ones_pays(x.to("meta"), 64)


# ---- as ops of torch


def arguments(op: str, **changed: Any) -> dict[str, Any]:
    """Arguments of an op, by name."""
    geometry = {"kernel": [3, 3], "stride": [2, 1], "padding": [1, 0], "dilation": [1, 1]}
    bits = torch.arange(12, dtype=torch.int32).view(6, 2)
    given = {
        "pack_ones": {"mask": random_mask(5, 40)},
        "masked_ones_linear": {"x": random_sums(3, 40, dtype=F32), "bits": bits},
        "masked_ones_linear_backward": {
            "dy": random_sums(3, 6, dtype=F32), "bits": bits, "inputs": 40,
        },
        "masked_ones_conv2d": {
            "x": random_sums(2, 4, 5, 6, dtype=F32), "bits": bits[:, :1], **geometry, "groups": 2,
        },
    }[op]  # fmt: skip
    return {**given, **changed}


OPS = ("pack_ones", "masked_ones_linear", "masked_ones_linear_backward", "masked_ones_conv2d")


@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_masked_ones(op: str):
    torch.library.opcheck(getattr(torch.ops.pxfast, op), (), arguments(op))


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("pack_ones", {"mask": torch.ones(3, 4)}, "mask must be bool, got float32"),
    ("pack_ones", {"mask": torch.tensor(True)}, "mask must have shape [O, ...], got []"),
    (
        "masked_ones_linear",
        {"x": torch.ones(3, 65)},
        "bits must have shape [O, 3] for 65 inputs, got [6, 2]",
    ),
    (
        "masked_ones_linear",
        {"x": torch.ones(3, 40).half()},
        "x must be float32 or float64, got float16",
    ),
    ("masked_ones_linear", {"x": torch.tensor(1.0)}, "x must have shape [..., K], got []"),
    (
        "masked_ones_linear",
        {"bits": torch.ones(6, 2, dtype=torch.int64)},
        "bits must be int32, got int64",
    ),
    (
        "masked_ones_linear",
        {"bits": torch.ones(6, dtype=torch.int32)},
        "bits must have shape [O, 2] for 40 inputs, got [6]",
    ),
    (
        "masked_ones_linear_backward",
        {"dy": torch.ones(3, 5)},
        "dy must have shape [..., 6], got [3, 5]",
    ),
    (
        "masked_ones_linear_backward",
        {"dy": torch.ones(3, 6).bfloat16()},
        "dy must be float32 or float64, got bfloat16",
    ),
    ("masked_ones_linear_backward", {"inputs": -1}, "inputs must be at least 0, got -1"),
    (
        "masked_ones_linear_backward",
        {"inputs": 65},
        "bits must have shape [O, 3] for 65 inputs, got [6, 2]",
    ),
    (
        "masked_ones_conv2d",
        {"x": torch.ones(4, 5, 6)},
        "x must have shape [N, C, H, W], got [4, 5, 6]",
    ),
    (
        "masked_ones_conv2d",
        {"groups": 4},
        "groups must be at least 1 and divide the 4 channels and 6 outputs, got 4",
    ),
    (
        "masked_ones_conv2d",
        {"kernel": [3, 6]},
        "bits must have shape [O, 2] for 36 inputs, got [6, 1]",
    ),
    ("masked_ones_conv2d", {"kernel": [0, 3]}, "kernel must be two integers >= 1, got [0, 3]"),
    ("masked_ones_conv2d", {"stride": [0, 1]}, "stride must be two integers >= 1, got [0, 1]"),
    (
        "masked_ones_conv2d",
        {"dilation": [4, 1]},
        "x with its padding must be at least as large as the dilated kernel, 9, got 7",
    ),
]


@pytest.mark.parametrize(("op", "changed", "message"), BAD)
def test_bad_input_to_masked_ones_gives_the_same_error_everywhere(
    backend: Backend, op: str, changed: dict[str, Any], message: str
):
    if backend.device == "emulated":
        return  # checks are the binding's, which it goes around
    given = arguments(op, **changed)
    meta = {n: t.to("meta") if isinstance(t, Tensor) else t for n, t in given.items()}
    for way in ("backend", "meta"):
        with pytest.raises(ValueError) as error:
            if way == "backend":
                backend(op, *given.values())
            else:
                getattr(torch.ops.pxfast, op)(**meta)
        assert str(error.value) == f"{op}: {message}"


def test_unpacking_checks_the_shape():
    with pytest.raises(ValueError, match="unpack_ones: bits must have shape"):
        ops.unpack_ones(torch.zeros(2, 2, dtype=torch.int32), (2, 3))
