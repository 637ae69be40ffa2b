"""squared_attention and its backward on every backend, against float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import Backend
from tolerances import attention, stored
from torch import Tensor

import pxfast.reference.squared_attention as reference

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

# N, H, T, S, D, E, P: empty, single, and around the sizes that kernels cut at: 6 rows and 4 columns
# of path sums, strips of 8 to 64 columns, blocks of 96 queries and 256 keys on the CPU; tiles of 32
# queries, 64 keys and 16 or 64 columns on CUDA.
SHAPES = [
    *itertools.product((0, 1), (1,), (0, 2), (0, 3), (0, 1), (2,), (1,)),
    (1, 2, 1, 1, 1, 1, 1),
    (2, 3, 6, 7, 4, 5, 1),
    (1, 1, 33, 65, 33, 17, 17),
    (2, 1, 31, 64, 16, 65, 4),
    (1, 2, 97, 15, 3, 64, 5),
    (1, 1, 5, 300, 8, 3, 66),
    (1, 1, 3, 129, 300, 2, 0),
    (1, 1, 7, 40, 20, 0, 64),
]
MASKS = ["none", "bool", "added", "row", "column"]


class Case:
    """Arguments of one call, and what it must give."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, mask: str = "none", seed: int = 0
    ) -> None:
        N, H, T, S, D, E, P = shape
        draw = torch.Generator().manual_seed(seed)
        self.path_dtype = F64 if dtype == F64 else F32

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=F64)

        self.q, self.k, self.v = (
            normal(N, H, n, width).to(dtype) for n, width in ((T, D), (S, D), (S, E))
        )
        self.path = normal(N, H, S, P).abs().to(self.path_dtype)
        self.dy = normal(N, H, T, P).abs().to(self.path_dtype)
        self.scale = 1.3 / max(1, D) ** 0.5
        sizes = {"bool": (1, H, T, S), "added": (N, 1, T, S), "row": (1, 1, T, 1)}
        mask_shape = sizes.get(mask, (N, 1, 1, S))
        keep = torch.rand(mask_shape, generator=draw) < 0.7
        added = normal(*mask_shape).masked_fill(~keep, -torch.inf).to(self.path_dtype)
        self.mask = {"none": None, "added": added}.get(mask, keep)

    def forward(self) -> tuple[Any, ...]:
        """The arguments of the forward."""
        return self.q, self.k, self.path, self.v, self.mask, self.scale

    def backward(self) -> tuple[Any, ...]:
        """The arguments of the backward."""
        return self.dy, self.q, self.k, self.mask, self.scale

    def tolerance(self) -> float:
        """Of every result, relative to the sum of its terms' magnitudes."""
        magnitudes = self.scale * (self.q.double().abs() @ self.k.double().abs().mT)
        largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
        if self.mask is not None and self.mask.dtype != torch.bool and self.mask.numel():
            largest += float(self.mask.nan_to_num(neginf=0).abs().max())
        return attention(
            self.q.shape[3], max(*self.q.shape[2:3], self.k.shape[2]), largest, self.path_dtype
        )

    def check(self, output: Tensor, paths: Tensor, dpath: Tensor) -> None:
        """Compare with the formula in float64."""
        q, k, v, path, dy = (t.double() for t in (self.q, self.k, self.v, self.path, self.dy))
        mask = (
            self.mask if self.mask is None or self.mask.dtype == torch.bool else self.mask.double()
        )
        _, squared = reference.squared_attention(q, k, path, None, mask, self.scale)
        magnitude, exact = (
            reference.squared_attention(q, k, path, v, mask, self.scale)[0] for v in (v.abs(), v)
        )
        back = reference.squared_attention_backward(dy, q, k, mask, self.scale)
        rounding = stored(self.v.dtype)
        for name, actual, expected, terms, own in (
            ("output", output, exact, magnitude, rounding),
            ("paths", paths, squared, squared, 0.0),
            ("dpath", dpath, back, back, 0.0),
        ):
            assert actual.shape == expected.shape, name
            error = (actual.double() - expected).abs()
            allowed = (self.tolerance() + own) * terms + (1e-7 if own else 0) * own
            assert (error <= allowed).all(), f"{name}: {(error / terms).max()}"


def run(backend: Backend, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Output, paths and dpath."""
    output, paths = backend("squared_attention", *case.forward())
    return output, paths, backend("squared_attention_backward", *case.backward())


def test_the_reference_is_the_formula_of_attention():
    case = Case((1, 1, 2, 3, 2, 2, 2), F64)
    q, k, v, path = case.q[0, 0], case.k[0, 0], case.v[0, 0], case.path[0, 0]
    output, paths = reference.squared_attention(*case.forward())
    dpath = reference.squared_attention_backward(*case.backward())
    total = torch.zeros(3, 2, dtype=F64)
    for t in range(2):
        e = torch.stack([torch.exp(case.scale * (q[t] * k[s]).sum()) for s in range(3)])
        a = e / e.sum()
        torch.testing.assert_close(output[0, 0, t], sum(a[s] * v[s] for s in range(3)))
        torch.testing.assert_close(paths[0, 0, t], sum(a[s] ** 2 * path[s] for s in range(3)))
        total += torch.outer(a**2, case.dy[0, 0, t])
    torch.testing.assert_close(dpath[0, 0], total)


def test_the_identity_of_two_log_sum_exps():
    """A∘A = softmax(2L) exp(lse(2L) − 2 lse(L)): any attention that returns its lse serves."""
    case = Case((2, 2, 9, 11, 4, 3, 5), F64)
    logits = case.scale * case.q @ case.k.mT
    twice = F.scaled_dot_product_attention(2 * case.q, case.k, case.path, scale=case.scale)
    factor = torch.exp((2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1))
    expected = reference.squared_attention(*case.forward())[1]
    torch.testing.assert_close(twice * factor[..., None], expected)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
def test_values_of_attention(backend: Backend, dtype: torch.dtype, mask: str):
    for shape in SHAPES:
        if backend.device == "emulated" and (dtype != F32 or mask != "bool") and max(shape) > 60:
            continue  # the tiles are the same: tests/emulated has small ones
        case = Case(shape, dtype, mask)
        case.check(*run(backend, case))


def test_large_logits(backend: Backend):
    """Exponentials that would overflow, and probabilities that are 0."""
    case = Case((1, 2, 9, 70, 4, 3, 2), F32)
    case.q *= 100
    output, paths, dpath = run(backend, case)
    exact = [t.double() for t in reference.squared_attention(
        case.q.double(), case.k.double(), case.path.double(), case.v.double(), None, case.scale
    )]  # fmt: skip
    for actual, expected in zip((output, paths), exact, strict=True):
        assert (actual.double() - expected).abs().max() <= case.tolerance() * expected.abs().max()
    assert dpath.isfinite().all()


@pytest.mark.parametrize("path", [(2, 1, 1), (1, 1, 2), (1, 3, 1)], ids=str)
def test_narrow_arguments(backend: Backend, path: tuple[int, ...]):
    case = Case((2, 3, 8, 10, 4, 5, path[2]), F32, "bool")
    full = (2, 3)
    case.k, case.v = case.k[:1], case.v[:, :1]
    case.path = case.path[: path[0], : path[1]]
    narrow = backend("squared_attention", *case.forward())
    case.k, case.v = case.k.expand(*full, -1, -1), case.v.expand(*full, -1, -1)
    case.path = case.path.expand(*full, -1, -1)
    wide = backend(
        "squared_attention",
        *(t.contiguous() if isinstance(t, Tensor) else t for t in case.forward()),
    )
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


def strided(tensor: Tensor, kind: str) -> Tensor:
    """Equal to `tensor`, with other strides, NaN between its entries."""
    N, H, rows, columns = tensor.shape
    if kind == "packed":  # as a qkv projection gives it
        whole = torch.full((N, rows, 3, H, columns), torch.nan, dtype=tensor.dtype)
        view = whole[:, :, 1].transpose(1, 2)
    elif kind == "columns":
        view = torch.full((N, H, rows, 2 * columns), torch.nan, dtype=tensor.dtype)[..., ::2]
    else:
        view = torch.full((N, H, columns, rows + 1), torch.nan, dtype=tensor.dtype).mT[:, :, 1:]
    return view.copy_(tensor)


@pytest.mark.parametrize("kind", ["packed", "columns", "transposed"])
def test_any_strides_in_attention(backend: Backend, kind: str):
    case = Case((2, 3, 7, 9, 4, 5, 2), F32, "added")
    before = run(backend, case)
    for name in ("q", "k", "v", "path", "dy", "mask"):
        setattr(case, name, strided(getattr(case, name), kind))
    assert all(torch.equal(a, b) for a, b in zip(before, run(backend, case), strict=True))


def test_nan_stays_in_its_row(backend: Backend):
    case = Case((1, 1, 8, 70, 4, 3, 1), F32)
    case.q[0, 0, 2] = torch.nan
    output, paths, dpath = run(backend, case)
    rows = torch.arange(8) == 2
    assert torch.equal(output[0, 0].isnan().all(-1), rows)
    assert torch.equal(paths[0, 0].isnan().all(-1), rows)
    assert dpath.isnan().all()


def test_threads_change_no_bit_of_attention():
    case = Case((2, 3, 200, 70, 16, 8, 6), F32, "bool")
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        output, paths = torch.ops.pxfast.squared_attention(*case.forward())
        results.append(
            (output, paths, torch.ops.pxfast.squared_attention_backward(*case.backward()))
        )
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
