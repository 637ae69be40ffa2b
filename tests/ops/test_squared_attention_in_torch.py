"""squared_attention as an op of torch: shapes, gradients, opcheck, bad input, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import Backend
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pxfast import ops

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
N, H, T, S, D, E = 2, 3, 5, 7, 4, 6


def arguments(dtype: torch.dtype = F32, device: Any = "cpu", **changed: Any) -> dict[str, Any]:
    """Arguments of the op, by name."""
    torch.manual_seed(0)
    path = F64 if dtype == F64 else F32
    given = {
        "q": torch.randn(N, H, T, D, device=device).to(dtype),
        "k": torch.randn(N, H, S, D, device=device).to(dtype),
        "path": torch.rand(N, 1, S, 1, device=device, dtype=path),
        "v": torch.randn(N, H, S, E, device=device).to(dtype),
        "mask": torch.rand(1, H, T, S, device=device) < 0.8,
        "scale": 0.7,
    }
    return {**given, **changed}


def backward_arguments(**changed: Any) -> dict[str, Any]:
    """Arguments of the op's backward, by name."""
    a = arguments()
    given = {"dy": torch.rand(N, H, T, 2), **{n: a[n] for n in ("q", "k", "mask", "scale")}}
    return {**given, **{name: value for name, value in changed.items() if name in given}}


# ---- the function that scoring calls


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("masked", [None, "bool", "added"])
def test_any_leading_dimensions(lead: tuple[int, ...], masked: str | None):
    torch.manual_seed(0)
    q, k, v = (torch.randn(*lead, n, 4, dtype=F64) for n in (5, 7, 7))
    path = torch.rand(7, 2, dtype=F64)  # the same for all heads and samples
    mask = None if masked is None else torch.rand(5, 7) < 0.7
    if masked == "added":
        mask = torch.randn(*lead, 5, 7, dtype=F64)
    output, paths = ops.squared_attention(q, k, path, v, mask)
    assert output is not None
    unit = torch.eye(7, dtype=F64).expand(*lead, 7, 7)
    a = F.scaled_dot_product_attention(q, k, unit, mask)
    torch.testing.assert_close(output, a @ v)
    torch.testing.assert_close(paths, a.square() @ path)


def test_scale_is_one_over_the_root_of_the_features():
    a = arguments(F64)
    given, scaled = a | {"scale": D**-0.5}, a | {"scale": None}
    assert torch.equal(ops.squared_attention(**given)[1], ops.squared_attention(**scaled)[1])
    assert not torch.equal(ops.squared_attention(**a)[1], ops.squared_attention(**scaled)[1])


def test_a_query_that_may_look_nowhere_is_0(device: torch.device):
    a = arguments(device=device)
    forbidden = a["mask"].clone()
    forbidden[0, 0, 1] = False
    added = torch.zeros(1, H, T, S, device=device).masked_fill(~forbidden, -torch.inf)
    for mask in (forbidden, added):
        output, paths = ops.squared_attention(**a | {"mask": mask})
        expected = F.scaled_dot_product_attention(a["q"], a["k"], a["v"], mask, scale=a["scale"])
        assert output is not None and not expected[:, 0, 1].any()
        assert not output[:, 0, 1].any() and not paths[:, 0, 1].any()
        assert paths[:, 0, 0].all() and paths[:, 1].all()
        torch.testing.assert_close(output, expected)


def test_without_values_there_is_no_output():
    output, paths = ops.squared_attention(**arguments(v=None))
    assert output is None
    assert torch.equal(paths, ops.squared_attention(**arguments())[1])


def test_heads_of_a_token_lie_side_by_side():
    """What follows joins them, and should not have to copy."""
    output, paths = ops.squared_attention(**arguments())
    assert output is not None
    for result in (output, paths):
        assert result.transpose(1, 2).is_contiguous()


# ---- gradients


@pytest.mark.parametrize("narrow", [(N, 1, S, 1), (N, H, S, 2), (1, 1, S, 1)], ids=str)
def test_gradients_of_attention_to_the_second_order(device: torch.device, narrow: tuple[int, ...]):
    a = arguments(F64, device)
    path = torch.rand(narrow, dtype=F64, device=device, requires_grad=True)

    def paths(path: Tensor) -> Tensor:
        return ops.squared_attention(**a | {"path": path})[1]

    assert gradcheck(paths, (path,))
    assert gradgradcheck(paths, (path,))


def test_the_output_carries_no_gradient():
    output, paths = ops.squared_attention(**arguments(path=torch.rand(S, 1, requires_grad=True)))
    assert output is not None and not output.requires_grad and paths.requires_grad


@pytest.mark.parametrize("name", ["q", "k", "v", "mask"])
def test_gradients_by_data_are_refused(name: str):
    a = arguments(mask=torch.zeros(T, S))
    a[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{name} must not require grad, attention is a gate"):
        ops.squared_attention(**a)
    with torch.no_grad():
        ops.squared_attention(**a)


# ---- the op


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
@pytest.mark.parametrize("changed", [{}, {"v": None}, {"mask": None}], ids=str)
def test_opcheck_of_attention(device: torch.device, dtype: torch.dtype, changed: dict[str, Any]):
    torch.library.opcheck(
        torch.ops.pxfast.squared_attention, (), arguments(dtype, device) | changed
    )


@pytest.mark.parametrize("masked", [True, False])
def test_opcheck_of_the_backward(masked: bool):
    given = backward_arguments() if masked else backward_arguments(mask=None)
    torch.library.opcheck(torch.ops.pxfast.squared_attention_backward, (), given)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", ["q", "k", "path", "v", "mask", "scale", "dy"])
def test_every_argument_arrives_in_attention(backend: Backend, name: str, backward: bool):
    """torch does not compare the arguments of a kernel on its stable ABI with the schema."""
    given = backward_arguments() if backward else arguments()
    op = "squared_attention_backward" if backward else "squared_attention"
    if name not in given:
        return
    other = 0.3 if name == "scale" else ~given[name] if name == "mask" else given[name].square()
    results = [backend(op, *(given | changed).values()) for changed in ({}, {name: other})]
    first, second = ([r] if isinstance(r, Tensor) else list(r) for r in results)
    changes = [not torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert changes == ([True] if backward else [name != "path", name != "v"])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "q_dims": ({"q": torch.ones(H, T, D)}, f"q must have shape [N, H, T, D], got [{H}, {T}, {D}]"),
    "q_dtype": (
        {"q": torch.ones(N, H, T, D, dtype=torch.int64)},
        "q must be float32, float64, bfloat16 or float16, got int64",
    ),
    "k_features": (
        {"k": torch.ones(N, H, S, 3)},
        f"k must have shape [{N} or 1, {H} or 1, S, {D}], got [{N}, {H}, {S}, 3]",
    ),
    "k_heads": (
        {"k": torch.ones(N, 2, S, D)},
        f"k must have shape [{N} or 1, {H} or 1, S, {D}], got [{N}, 2, {S}, {D}]",
    ),
    "k_dtype": (
        {"k": torch.ones(N, H, S, D, dtype=F64)},
        "k must be float32 where q is float32, got float64",
    ),
    "mask_keys": (
        {"mask": torch.ones(1, 1, T, 2, dtype=torch.bool)},
        f"mask must have shape [{N} or 1, {H} or 1, {T} or 1, {S} or 1], got [1, 1, {T}, 2]",
    ),
    "mask_dtype": (
        {"mask": torch.ones(1, 1, T, S, dtype=F64)},
        "mask must be bool or float32 where q is float32, got float64",
    ),
    "path_keys": (
        {"path": torch.ones(N, 1, T, 1)},
        f"path must have shape [{N} or 1, {H} or 1, {S}, P], got [{N}, 1, {T}, 1]",
    ),
    "path_dtype": (
        {"path": torch.ones(N, 1, S, 1, dtype=F64)},
        "path must be float32 where q is float32, got float64",
    ),
    "v_keys": (
        {"v": torch.ones(N, H, T, E)},
        f"v must have shape [{N} or 1, {H} or 1, {S}, E], got [{N}, {H}, {T}, {E}]",
    ),
    "v_dtype": (
        {"v": torch.ones(N, H, S, E, dtype=F64)},
        "v must be float32 where q is float32, got float64",
    ),
}
BAD_BACKWARD: dict[str, tuple[dict[str, Any], str]] = {
    "dy_rows": (
        {"dy": torch.ones(N, H, S, 2)},
        f"dy must have shape [{N}, {H}, {T}, P], got [{N}, {H}, {S}, 2]",
    ),
    "dy_heads": (
        {"dy": torch.ones(N, 1, T, 2)},
        f"dy must have shape [{N}, {H}, {T}, P], got [{N}, 1, {T}, 2]",
    ),
    "dy_dtype": (
        {"dy": torch.ones(N, H, T, 2, dtype=F64)},
        "dy must be float32 where q is float32, got float64",
    ),
}


@pytest.mark.parametrize("bad", [*BAD, *BAD_BACKWARD])
def test_bad_input_to_attention_gives_the_same_error_everywhere(backend: Backend, bad: str):
    if backend.device == "emulated":
        return  # checks are the binding's, which it goes around
    changed, message = (BAD | BAD_BACKWARD)[bad]
    calls: list[tuple[str, dict[str, Any]]] = []
    if bad in BAD:
        calls.append(("squared_attention", arguments(**changed)))
    if not {"path", "v"} & set(changed):
        calls.append(("squared_attention_backward", backward_arguments(**changed)))
    for op, given in calls:
        meta = {n: t.to("meta") if isinstance(t, Tensor) else t for n, t in given.items()}
        ways: list[Callable[[], Any]] = [
            lambda op=op, given=given: backend(op, *given.values()),
            lambda op=op, meta=meta: getattr(torch.ops.pxfast, op)(**meta),
        ]
        for way in ways:
            with pytest.raises(ValueError) as error:
                way()
            assert str(error.value) == f"{op}: {message}"


@pytest.mark.parametrize("name", ["k", "path", "v", "mask"])
def test_bad_device_of_attention(name: str):
    given = arguments(device="meta")
    given[name] = torch.empty_like(given[name], device="cpu")
    with pytest.raises(ValueError, match=f"{name} must be on q's device meta, got cpu"):
        torch.ops.pxfast.squared_attention(**given)


# ---- memory


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_nothing_of_the_size_of_a_is_allocated(backward: bool):
    q, k = torch.randn(1, 16, 1024, 4), torch.randn(1, 16, 1024, 4)
    path = torch.rand(1, 1, 1024, 1, requires_grad=backward)
    with torch.profiler.profile(profile_memory=True) as profile:
        paths = ops.squared_attention(q, k, path)[1]
        if backward:
            paths.sum().backward()
    most = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < most <= 4 * 16 * 1024 * 1024 // 3
