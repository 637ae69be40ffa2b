"""squared_conv2d and its backward on every backend, against float64; as ops of torch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import Backend, need
from tolerances import SMALL_NET, close, sum_of_products
from torch import Tensor

import pxfast
import pxfast.reference.squared_conv2d as reference
from pxfast import _native, ops

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

# x [N, C, H, W], O, kernel, stride, padding, dilation, groups.
GEOMETRIES: list[tuple[Any, ...]] = [
    ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 7, 6), 5, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 4, 9, 8), 6, (3, 2), (2, 1), (1, 0), (1, 2), 2),
    ((2, 6, 5, 5), 6, (3, 3), (2, 2), (1, 1), (1, 1), 6),
    ((1, 33, 6, 5), 34, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((1, 3, 12, 11), 4, (5, 3), (3, 2), (2, 3), (2, 1), 1),
    ((1, 2, 8, 8), 3, (2, 2), (3, 3), (0, 0), (1, 1), 1),
    ((0, 2, 4, 4), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 0, 4, 4), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 70, 5, 5), 19, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 35, 13, 12), 18, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 32, 4, 4), 20, (1, 1), (2, 1), (0, 0), (1, 1), 2),
    ((1, 1, 12, 12), 2, (9, 8), (1, 1), (4, 4), (1, 1), 1),
]


class Case:
    """Arguments of one call, and what it must give."""

    def __init__(self, geometry: tuple[Any, ...], dtype: torch.dtype, *, masked: bool) -> None:
        shape, outputs, kernel, *self.geometry = geometry
        draw = torch.Generator().manual_seed(0)
        self.path = F64 if dtype == F64 else F32

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=F64)

        weight = (outputs, shape[1] // self.geometry[3], *kernel)
        self.x, self.weight = normal(*shape).to(self.path), normal(*weight).to(dtype)
        self.saliency = normal(*weight).abs().to(self.path)
        self.mask = torch.rand(weight, generator=draw) < 0.7 if masked else None
        padding, dilation, stride = self.geometry[1], self.geometry[2], self.geometry[0]
        out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
        ]
        self.dy = normal(shape[0], outputs, *out).to(self.path)

    def exact(self, magnitudes: bool) -> tuple[Tensor, Tensor, Tensor]:
        """y, dx and the saliency in float64, of the arguments or of their magnitudes."""
        given = [t.double() for t in (self.dy, self.x, self.weight, self.saliency)]
        dy, x, weight, total = (t.abs() if magnitudes else t.clone() for t in given)
        if x.numel() == 0:
            return torch.zeros_like(dy), torch.zeros_like(x), total
        y = reference.squared_conv2d(x, weight, self.mask, *self.geometry)
        dx = reference.squared_conv2d_backward(dy, x, weight, self.mask, total, *self.geometry)
        return y, dx, total

    def check(self, y: Tensor, dx: Tensor, saliency: Tensor) -> None:
        """Compare, errors relative to the sums of the terms' magnitudes."""
        N, O, *area = self.dy.shape
        taps = self.weight.shape[2] * self.weight.shape[3]
        terms = (self.weight.shape[1] * taps, O * taps, N * area[0] * area[1])
        for actual, exact, magnitude, count in zip(
            (y, dx, saliency), self.exact(False), self.exact(True), terms, strict=True
        ):
            assert actual.dtype == self.path and actual.shape == exact.shape
            error = (actual.double() - exact).abs()
            assert (error <= sum_of_products(count, self.path) * magnitude).all(), error.max()


def run(backend: Backend, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and the saliency afterwards."""
    saliency = case.saliency.clone()
    y = backend("squared_conv2d", case.x, case.weight, case.mask, *case.geometry)
    arguments = case.dy, case.x, case.weight, case.mask, saliency, *case.geometry, True
    return y, backend("squared_conv2d_backward", *arguments), saliency


def test_the_reference_is_the_formula_of_a_convolution():
    case = Case(GEOMETRIES[2], F64, masked=True)
    y, dx, saliency = case.exact(False)
    assert case.mask is not None
    theta = (case.weight**2 * case.mask).requires_grad_()
    x = case.x.clone().requires_grad_()
    stride, padding, dilation, groups = case.geometry
    expected = F.conv2d(x, theta, None, stride, padding, dilation, groups)
    (expected * case.dy).sum().backward()
    assert theta.grad is not None and x.grad is not None
    torch.testing.assert_close(y, expected.detach())
    torch.testing.assert_close(dx, x.grad)
    torch.testing.assert_close(saliency, case.saliency + theta.grad * theta.detach())


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=lambda d: str(d)[6:])
def test_values_of_convolutions(backend: Backend, dtype: torch.dtype, masked: bool):
    for geometry in GEOMETRIES:
        case = Case(geometry, dtype, masked=masked)
        case.check(*run(backend, case))


def test_a_masked_weight_counts_as_0_whatever_it_holds(backend: Backend):
    case = Case(GEOMETRIES[1], F32, masked=True)
    before = run(backend, case)
    assert case.mask is not None
    case.weight[~case.mask] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(before, run(backend, case), strict=True))


def test_saliency_of_a_convolution_is_written_over_whatever_it_held(backend: Backend):
    for geometry in GEOMETRIES:
        case = Case(geometry, F32, masked=True)
        case.saliency.zero_()
        added = run(backend, case)[2]
        written = torch.full_like(added, torch.nan)
        arguments = case.dy, case.x, case.weight, case.mask, written, *case.geometry, True, False
        backend("squared_conv2d_backward", *arguments)
        assert torch.equal(written, added)


@pytest.mark.parametrize("density", [0.0, 0.03, 0.4])
def test_few_weights_of_a_convolution(backend: Backend, density: float):
    for geometry in GEOMETRIES[-4:]:
        case = Case(geometry, F32, masked=True)
        assert case.mask is not None
        case.mask = (
            torch.rand(case.mask.shape, generator=torch.Generator().manual_seed(1)) < density
        )
        case.check(*run(backend, case))


def test_threads_change_no_bit_of_a_convolution():
    need("cpu", _native.problem)
    case, threads = Case(GEOMETRIES[-3], F32, masked=True), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(_Op(), case))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_without_dx_of_a_convolution(backend: Backend):
    case = Case(GEOMETRIES[1], F32, masked=False)
    expected, saliency = run(backend, case)[2], case.saliency.clone()
    arguments = case.dy, case.x, case.weight, case.mask, saliency, *case.geometry, False
    assert backend("squared_conv2d_backward", *arguments).numel() == 0
    assert torch.equal(saliency, expected)


def test_any_strides_of_a_convolution():
    case = Case(GEOMETRIES[1], F32, masked=True)
    before = run(_Op(), case)
    for name in ("x", "dy", "weight", "saliency"):
        tensor = getattr(case, name).to(memory_format=torch.channels_last)
        setattr(case, name, tensor)
    case.check(*run(_Op(), case))
    assert all(a.shape == b.shape for a, b in zip(before, run(_Op(), case), strict=True))


class _Op(Backend):
    """The op as the CPU runs it."""

    name = device = "cpu"

    def __call__(self, op: str, *args: Any) -> Any:
        return getattr(torch.ops.pxfast, op)(*args)


# ---- the way through the columns of the input, and where which way pays


@pytest.mark.parametrize("with_dx", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_columns_of_small_maps(masked: bool, contiguous: bool, with_dx: bool):
    case = Case(((1, 16, 7, 7), 20, (3, 3), (1, 1), (1, 1), (1, 1), 1), F32, masked=masked)
    saliency = case.saliency.clone()
    if not contiguous:
        saliency = saliency.to(memory_format=torch.channels_last)
    arguments = case.dy, case.x, case.weight, case.mask, saliency
    dx = ops.squared_conv2d_backward_by_columns(*arguments, *case.geometry[:3], with_dx)
    y, exact, _ = case.exact(False)
    assert with_dx or dx.numel() == 0
    case.check(y.float(), dx if with_dx else exact.float(), saliency)


def test_where_columns_pay():
    need("cpu", _native.problem)
    weight = torch.empty(512, 512, 3, 3)

    def pays(samples: int, weight: Tensor, groups: int = 1) -> bool:
        x = torch.empty(samples, 512, 7, 7)
        return ops.squared_conv2d_columns_pay(x, x, weight, groups)

    assert pays(1, weight)
    assert not any((pays(2, weight), pays(0, weight), pays(1, weight[:64]), pays(1, weight, 2)))


def test_where_kept_weights_alone_pay():
    need("cpu", _native.problem)
    x = torch.empty(1)
    assert ops.squared_conv2d_pays(x, 256, 0.4)
    assert not any(ops.squared_conv2d_pays(x, *other) for other in ((0, 0.1), (257, 0.1), (9, 0.5)))
    assert not ops.squared_conv2d_pays(x.to("meta"), 9, 0.1)


@pytest.mark.parametrize("way", ["kernel", "columns"])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_the_same_either_way(monkeypatch: pytest.MonkeyPatch, masked: bool, way: str):
    need("cpu", _native.problem)
    calls: list[str] = []
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 6, 3, groups=2 if way == "kernel" else 1),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 3),
    )
    masks = {"2.weight": torch.rand_like(model[2].weight) < 0.5} if masked else None
    images = torch.randn(4, 2, 8, 8)

    def counted(name: str) -> None:
        function = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a: calls.append(name) or function(*a))

    monkeypatch.setattr(ops, "squared_conv2d_pays", lambda *_: False)
    expected = pxfast.score(model, images, masks=masks)
    monkeypatch.setattr(ops, "squared_conv2d_pays", lambda *_: way == "kernel")
    monkeypatch.setattr(ops, "squared_conv2d_columns_pay", lambda *_: way == "columns")
    names = {
        "kernel": ["squared_conv2d", "squared_conv2d_backward"],
        "columns": ["squared_conv2d_backward_by_columns"],
    }[way]
    for name in names:
        counted(name)
    scores = pxfast.score(model, images, masks=masks)
    assert sorted(calls) == sorted(2 * names)
    for name in expected:
        close(scores[name], expected[name], SMALL_NET[F32], name)


# ---- as ops of torch


def arguments(**changed: Any) -> dict[str, Any]:
    """Arguments of the backward, by name."""
    torch.manual_seed(0)
    given = {
        "dy": torch.rand(2, 6, 3, 4),
        "x": torch.rand(2, 4, 5, 6),
        "weight": torch.randn(6, 2, 3, 3),
        "mask": torch.rand(6, 2, 3, 3) < 0.7,
        "saliency": torch.rand(6, 2, 3, 3),
        "stride": [2, 1],
        "padding": [1, 0],
        "dilation": [1, 1],
        "groups": 2,
        "with_dx": True,
    }
    return {**given, **changed}


def forward(given: dict[str, Any]) -> dict[str, Any]:
    """Those of the forward among them."""
    return {n: a for n, a in given.items() if n not in ("dy", "saliency", "with_dx", "add")}


def test_opcheck_of_convolutions():
    torch.library.opcheck(torch.ops.pxfast.squared_conv2d, (), forward(arguments()))
    for changed in ({}, {"mask": None}, {"with_dx": False}, {"add": False}):
        given = arguments(**changed)
        torch.library.opcheck(torch.ops.pxfast.squared_conv2d_backward, (), given)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "weight_dims": (
        {"weight": torch.ones(6, 2, 3)},
        "weight must have shape [O, C/groups, h, w], got [6, 2, 3]",
    ),
    "weight_dtype": (
        {"weight": torch.ones(6, 2, 3, 3, dtype=torch.int32)},
        "weight must be float32, float64, bfloat16 or float16, got int32",
    ),
    "groups": ({"groups": 4}, "groups must be at least 1 and divide the 6 outputs, got 4"),
    "x_channels": (
        {"x": torch.ones(2, 3, 5, 6)},
        "x must have shape [N, 4, H, W], got [2, 3, 5, 6]",
    ),
    "x_dtype": (
        {"x": torch.ones(2, 4, 5, 6, dtype=F64)},
        "x must be float32 where weight is float32, got float64",
    ),
    "mask_shape": (
        {"mask": torch.ones(6, 2, 3, 2, dtype=torch.bool)},
        "mask must have weight's shape [6, 2, 3, 3], got [6, 2, 3, 2]",
    ),
    "mask_dtype": ({"mask": torch.ones(6, 2, 3, 3)}, "mask must be bool, got float32"),
    "stride": ({"stride": [0, 1]}, "stride must be two integers >= 1, got [0, 1]"),
    "padding": ({"padding": [1]}, "padding must be two integers >= 0, got [1]"),
    "dilation": ({"dilation": [1, 0]}, "dilation must be two integers >= 1, got [1, 0]"),
    "too_small": (
        {"dilation": [4, 1]},
        "x with its padding must be at least as large as the dilated kernel, 9, got 7",
    ),
}
BAD_BACKWARD: dict[str, tuple[dict[str, Any], str]] = {
    "dy_shape": (
        {"dy": torch.ones(2, 6, 3, 3)},
        "dy must have shape [2, 6, 3, 4], got [2, 6, 3, 3]",
    ),
    "saliency_shape": (
        {"saliency": torch.ones(6, 2, 9)},
        "saliency must have weight's shape [6, 2, 3, 3], got [6, 2, 9]",
    ),
}


@pytest.mark.parametrize("bad", [*BAD, *BAD_BACKWARD])
def test_bad_input_to_convolutions_gives_the_same_error_everywhere(backend: Backend, bad: str):
    if backend.device == "emulated":
        return  # checks are the binding's, which it goes around
    changed, message = (BAD | BAD_BACKWARD)[bad]
    given = arguments(**changed)
    meta = {n: t.to("meta") if isinstance(t, Tensor) else t for n, t in given.items()}
    calls = [("squared_conv2d_backward", given, meta)]
    if bad in BAD:
        calls.append(("squared_conv2d", forward(given), forward(meta)))
    for (op, here, there), way in itertools.product(calls, ("backend", "meta")):
        with pytest.raises(ValueError) as error:
            if way == "backend":
                backend(op, *here.values())
            else:
                getattr(torch.ops.pxfast, op)(**there)
        assert str(error.value) == f"{op}: {message}"
