"""gate on every backend, against the reference in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from backends import Backend
from tolerances import GATE_OF_OP, GATE_OF_OP_TINY, GATE_SUM, VALUE_OF_OP, stored
from torch import Tensor

from pxfast import ops
from pxfast.reference.gate import GATES, VALUES

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

# Every activation with parameters, some with several.
KINDS: list[tuple[str, float, float]] = [
    *[(kind, 0.0, 0.0) for kind in GATES if kind not in ("hardtanh", "leaky_relu", "elu")],
    *[("hardtanh", 0.0, 6.0), ("hardtanh", -1.0, 1.0), ("hardtanh", -2.0, 0.5)],
    *[("hardtanh", 0.5, 2.0), ("hardtanh", -2.0, -0.5), ("leaky_relu", 0.01, 0.0)],
    *[("leaky_relu", 1.5, 0.0), ("elu", 1.0, 0.0), ("elu", 0.3, 0.0)],
]
SLOPES = {"sigmoid", "hardsigmoid"}
SPECIAL = [0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 1.0, -1.0, 3.0, -3.0, 6.0, -2.999, 0.5, -2.0]
SPECIAL += [20.0, -20.0, 30.0, -30.0, 100.0, -100.0, 2e4, -2e4, 2.0**-14, -(2.0**-15), 2.0**-24]


def is_slope(kind: str, a: float, b: float) -> bool:
    """Whether the gate is φ' because φ(0) ≠ 0."""
    return kind in SLOPES or (kind == "hardtanh" and (a > 0 or b < 0))


def exact(z: Tensor, path: Tensor, kind: tuple[str, float, float]) -> tuple[Tensor, Tensor]:
    """Value and gated path in float64; the value without the cancellation of torch's own."""
    z, (name, a, b) = z.double(), kind
    gate = GATES[name](z, a, b)
    value = VALUES[name](z, a, b) if is_slope(*kind) else z * gate
    return value, path.double() * gate.square()


def check(
    value: Tensor, gated: Tensor, z: Tensor, path: Tensor, kind: tuple[str, float, float]
) -> None:
    """Compare both with the exact results; NaN fails."""
    exact_value, exact_gated = exact(z, path, kind)
    assert value.dtype == z.dtype and gated.dtype == path.dtype
    assert value.shape == gated.shape == z.shape
    scale = torch.maximum(z.double().abs(), exact_value.abs())
    allowed = VALUE_OF_OP[path.dtype] * scale + stored(z.dtype) * exact_value.abs()
    allowed += 2.0**-25 if z.dtype == F16 else 1e-37  # half of the smallest numbers' distance
    error = (value.double() - exact_value).abs()
    assert (error <= allowed).all(), (kind, z[error > allowed], value[error > allowed])
    allowed = GATE_OF_OP[path.dtype] * exact_gated + GATE_OF_OP_TINY * path.double()
    error = (gated.double() - exact_gated).abs()
    assert (error <= allowed).all(), (kind, z[error > allowed], gated[error > allowed])


def run(
    backend: Backend, z: Tensor, path: Tensor, kind: tuple[str, float, float]
) -> tuple[Tensor, Tensor]:
    """Value and gated path."""
    value = torch.full_like(z, torch.nan)
    return value, backend("gate", z, path, *kind, value)


def normal(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return (3 * torch.randn(shape, generator=draw, dtype=F64)).to(dtype)


def paths(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return normal(*shape, dtype=F64).abs().to(F64 if dtype == F64 else F32) + 0.5


# ---- the formulas


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_reference_is_the_formula(kind: tuple[str, float, float]):
    name, a, b = kind
    z = torch.cat([torch.linspace(-6.01, 6.03, 401, dtype=F64), torch.zeros(1, dtype=F64)])
    value, gate = VALUES[name](z, a, b), GATES[name](z, a, b)
    slope = torch.func.vmap(torch.func.grad(lambda x: VALUES[name](x, a, b)))(z)
    if is_slope(*kind):
        torch.testing.assert_close(gate, slope)
    else:
        torch.testing.assert_close(z * gate, value)
        if name != "hardtanh" or a * b < 0:  # torch's slope at an edge is a choice
            torch.testing.assert_close(gate[-1], slope[-1])


# ---- values


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values(backend: Backend, kind: tuple[str, float, float], dtype: torch.dtype):
    z = torch.cat([torch.tensor(SPECIAL, dtype=F64), torch.linspace(-9, 9, 1200, dtype=F64)])
    z = z.to(dtype)
    path = paths(z.numel(), dtype=dtype)
    check(*run(backend, z, path, kind), z, path, kind)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu", "mish", "tanh", "elu"])
def test_a_float32_gate_keeps_five_digits_down_to_1e_12(backend: Backend, kind: str):
    z = torch.linspace(-28, 0, 5000)
    gate = GATES[kind](z.double(), 1.0, 0.0)
    gated = backend("gate", z, torch.ones(1), kind, 1.0, 0.0, None)
    error = (gated.double().sqrt() / gate - 1).abs()[gate > 1e-12]
    assert len(error) > 1000 and (error < 1e-5).all()


def test_every_number_of_16_bits_goes_through(backend: Backend):
    for dtype in (BF16, F16):
        every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
        z = every[every.isfinite()]
        value, gated = run(backend, z, torch.ones(1), ("leaky_relu", 1.0, 0.0))
        assert torch.equal(value, z) and (gated == 1).all()


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nan_stays_nan(backend: Backend, kind: tuple[str, float, float], dtype: torch.dtype):
    z = normal(37, dtype=dtype)
    z[::5] = torch.nan
    value, _ = run(backend, z, paths(1, dtype=dtype), kind)
    assert torch.equal(value.isnan(), z.isnan())


# ---- sizes, layouts and narrow paths


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 1023, 8191, 8193, 16389])
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_sizes(backend: Backend, size: int, narrow: bool):
    z, path = normal(size), paths(1 if narrow else size)
    for kind in (("relu", 0.0, 0.0), ("silu", 0.0, 0.0)):
        check(*run(backend, z, path, kind), z, path, kind)


SHAPES = [(2, 5, 3, 7), (3, 16, 4, 4), (1, 3, 1, 9), (4, 1, 5, 5), (2, 6), (2, 3, 4, 2, 5), ()]


def narrow_forms(shape: tuple[int, ...]) -> Iterator[Tensor]:
    for wide in itertools.product([False, True], repeat=len(shape)):
        yield paths(*(size if w else 1 for size, w in zip(shape, wide, strict=True)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_narrow_form(backend: Backend, shape: tuple[int, ...]):
    z, kind = normal(*shape), ("hardswish", 0.0, 0.0)
    for path in narrow_forms(shape):
        check(*run(backend, z, path, kind), z, path, kind)


def layouts(tensor: Tensor) -> Iterator[Tensor]:
    """The same values in other orders of memory, the last two not dense."""
    yield tensor.to(memory_format=torch.channels_last)
    yield tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan)
    wide[..., ::2] = tensor
    yield wide[..., ::2]
    yield torch.cat([tensor, tensor], 1)[:, : tensor.shape[1]]


@pytest.mark.parametrize("wide", [*itertools.product([False, True], repeat=4)], ids=str)
def test_layouts(backend: Backend, wide: tuple[bool, ...]):
    shape, kind = (3, 6, 4, 5), ("mish", 0.0, 0.0)
    z, path = normal(*shape), paths(*(n if w else 1 for n, w in zip(shape, wide, strict=True)))
    for other_z, other_path in itertools.product([z, *layouts(z)], [path, *layouts(path)]):
        value, gated = run(backend, other_z, other_path, kind)
        check(value, gated, z, path, kind)
    check(*run(backend, z, path.expand(shape), kind), z, path, kind)


def test_the_results_lie_in_memory_as_z_does():
    z = normal(2, 6, 4, 5).to(memory_format=torch.channels_last)
    value, gated = ops.gate(z, paths(2, 1, 4, 5), "relu")
    assert value.is_contiguous(memory_format=torch.channels_last)
    assert gated.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("size", [3, 17, 50])
def test_what_lies_around_is_neither_used_nor_changed(
    backend: Backend, size: int, dtype: torch.dtype
):
    def surrounded(tensor: Tensor) -> Tensor:
        memory = torch.full((tensor.numel() + 70,), torch.nan, dtype=tensor.dtype)
        inside = memory[3 : 3 + tensor.numel()]
        return inside.copy_(tensor)

    z, path = surrounded(normal(size, dtype=dtype)), surrounded(paths(size, dtype=dtype))
    value = surrounded(torch.zeros(size, dtype=dtype))
    gated = backend("gate", z, path, "silu", 0.0, 0.0, value)
    check(value, gated, z, path, ("silu", 0.0, 0.0))
    for tensor in (z, path, value):
        memory = tensor.as_strided([size + 70], [1], 0)
        assert torch.cat([memory[:3], memory[3 + size :]]).isnan().all()


# ---- sums over channels

CHANNELS = [(1, 1), (2, 1, 3), (3, 9, 1, 1), (2, 5, 3, 7), (1, 70, 4, 9), (2, 3, 4, 2, 5)]


@pytest.mark.parametrize("kind", [("relu", 0.0, 0.0), ("mish", 0.0, 0.0)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", CHANNELS, ids=str)
def test_sums_over_channels(
    backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, kind: tuple[str, float, float]
):
    z = normal(*shape, dtype=dtype)
    for path in narrow_forms(shape):
        path = path.to(F64 if dtype == F64 else F32)
        value = torch.full_like(z, torch.nan)
        sums = backend("gate", z, path, *kind, value, True)
        alone = backend("gate", z, path, *kind, None, True)
        exact_sums = exact(z, path, kind)[1].sum(1, keepdim=True)
        assert torch.equal(sums, alone) and sums.shape == exact_sums.shape
        allowed = (GATE_OF_OP[path.dtype] + GATE_SUM[path.dtype] * shape[1]) * exact_sums
        assert ((sums.double() - exact_sums).abs() <= allowed + GATE_OF_OP_TINY).all()
        gated = backend("gate", z, path, *kind, torch.empty_like(z), False)
        check(value, gated, z, path, kind)


def test_sums_of_other_layouts(backend: Backend):
    z, path, kind = normal(3, 6, 4, 5), paths(3, 1, 4, 5), ("silu", 0.0, 0.0)
    expected = backend("gate", z, path, *kind, torch.empty_like(z), True)
    for other_z, other_path in itertools.product([z, *layouts(z)], [path, path.expand(z.shape)]):
        value = torch.full_like(other_z, torch.nan)
        sums = backend("gate", other_z, other_path, *kind, value, True)
        torch.testing.assert_close(sums, expected)
        check(value, backend("gate", z, path, *kind, None), z, path, kind)


def test_sums_over_no_channels_are_zero(backend: Backend):
    sums = backend("gate", normal(2, 0, 3), paths(2, 1, 3), "relu", 0.0, 0.0, None, True)
    assert torch.equal(sums, torch.zeros(2, 1, 3))


def test_channels_need_two_dimensions():
    with pytest.raises(ValueError, match=r"over_channels needs z of shape \[N, C"):
        ops.gate(normal(3), paths(3), "relu", over_channels=True)


# ---- the same bits


def test_without_a_value_the_path_is_the_same(backend: Backend):
    z, path = normal(7, 33), paths(7, 1)
    alone = backend("gate", z, path, "gelu", 0.0, 0.0, None)
    assert torch.equal(alone, run(backend, z, path, ("gelu", 0.0, 0.0))[1])


def test_threads_do_not_change_bits(backend: Backend):
    if backend.device != "cpu":
        return
    z, path = normal(3, 40, 1500), paths(3, 1, 1500)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(backend, z, path, ("silu", 0.0, 0.0)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("size", [5, 16, 49, 9000])
def test_in_place_gives_the_same_bits(backend: Backend, size: int):
    if backend.device == "cuda":
        return  # tests hand it copies
    z, path = normal(3, size), paths(3, 1)
    expected = run(backend, z, path, ("mish", 0.0, 0.0))
    gated = backend("gate", z, path, "mish", 0.0, 0.0, z)
    assert torch.equal(z, expected[0]) and torch.equal(gated, expected[1])
