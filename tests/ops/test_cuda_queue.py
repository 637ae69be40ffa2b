"""Work on CUDA is queued where torch wants it: on any stream, in a CUDA graph, on any device.

On a CPU the calls are compared with the reference, so that the table is known to hold what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backends import need
from torch import Tensor

from pxfast import ops
from pxfast.ops._declare import kernels_of, references

Arguments = tuple[Any, ...]


def _linear(T: int, O: int, K: int) -> Arguments:
    return torch.rand(T, K), torch.randn(O, K), torch.rand(O, K) < 0.5


def _linear_backward(T: int, O: int, K: int) -> Arguments:
    return torch.rand(T, O), *_linear(T, O, K), torch.rand(O, K), True


def _heads(*columns: int) -> list[Tensor]:
    return [torch.rand(2, 3, 37, width) for width in columns]


def _scores(tensors: int) -> tuple[list[Tensor], list[Tensor | None]]:
    scores = [torch.rand(50 + 7 * i) for i in range(tensors)]
    return scores, [torch.rand(s.shape) < 0.7 if i % 2 else None for i, s in enumerate(scores)]


GEOMETRY = ([2, 1], [1, 1], [1, 1], 2)
KERNEL = (6, 2, 3, 3)
# Of every op, its arguments; several where several kernels serve it.
CALLS: dict[str, tuple[str, Callable[[], Arguments]]] = {
    "linear of 1 token": ("squared_linear", lambda: _linear(1, 40, 64)),
    "linear of 40": ("squared_linear", lambda: _linear(40, 40, 64)),
    "linear of 200": ("squared_linear", lambda: _linear(200, 64, 128)),
    "backward of 1 token": ("squared_linear_backward", lambda: _linear_backward(1, 40, 64)),
    "backward of 200": ("squared_linear_backward", lambda: _linear_backward(200, 64, 128)),
    "medium precision": ("squared_linear", lambda: (*_linear(200, 64, 128), "medium")),
    "backward in medium precision": (
        "squared_linear_backward",
        lambda: (*_linear_backward(200, 64, 128), True, "medium"),
    ),
    "convolution": (
        "squared_conv2d",
        lambda: (torch.rand(2, 4, 7, 6), torch.randn(KERNEL), torch.rand(KERNEL) < 0.5, *GEOMETRY),
    ),
    "backward of a convolution": (
        "squared_conv2d_backward",
        lambda: (
            *(torch.rand(2, 6, 4, 6), torch.rand(2, 4, 7, 6), torch.randn(KERNEL), None),
            *(torch.rand(KERNEL), *GEOMETRY, True),
        ),
    ),
    "attention": ("squared_attention", lambda: (*_heads(8, 8, 1, 8), None, 0.3)),
    "backward of attention": (
        "squared_attention_backward",
        lambda: (*_heads(4, 8, 8), torch.rand(2, 3, 37, 37) < 0.9, 0.3),
    ),
    "gate": (
        "gate",
        lambda: (torch.randn(2, 3, 40), torch.rand(2, 1, 40), "gelu", 0.0, 0.0,
                 torch.empty(2, 3, 40), False),
    ),
    "gate over channels": (
        "gate", lambda: (torch.randn(2, 3, 40), torch.rand(2, 1, 40), "relu", 0.0, 0.0, None, True)
    ),
    "bits": ("pack_ones", lambda: (torch.rand(20, 70) < 0.5,)),
    "ones": (
        "masked_ones_linear",
        lambda: (torch.rand(3, 70), ops.pack_ones(torch.rand(20, 70) < 0.5)),
    ),
    "backward of ones": (
        "masked_ones_linear_backward",
        lambda: (torch.rand(30, 20), ops.pack_ones(torch.rand(20, 70) < 0.5), 70),
    ),
    "convolution of ones": (
        "masked_ones_conv2d",
        lambda: (
            *(torch.rand(2, 4, 7, 6), ops.pack_ones(torch.rand(KERNEL) < 0.5)),
            *([3, 3], *GEOMETRY),
        ),
    ),
    "counts": ("score_histogram", lambda: (*_scores(300), 0x3F000000, 12, 11)),
    "masks, all ties": ("write_masks", lambda: (*_scores(300), 0x3F000000, 0, 0)),
    "masks, some ties": ("write_masks", lambda: (*_scores(3), 0x3F000000, 1, 2)),
}  # fmt: skip


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> tuple[str, Arguments]:
    """An op and its arguments on the CPU."""
    torch.manual_seed(0)
    name, arguments = CALLS[request.param]
    return name, arguments()


@pytest.fixture(params=["cuda"])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    need("cuda", None if torch.cuda.is_available() else "torch sees no GPU")
    return torch.device("cuda", 0)


def moved(arguments: Any, device: torch.device | str) -> Any:
    """A copy of every tensor, also in lists."""
    if isinstance(arguments, Tensor):
        return arguments.clone() if arguments.device == device else arguments.to(device, copy=True)
    kind = type(arguments)
    return kind(moved(a, device) for a in arguments) if kind in (list, tuple) else arguments


def tensors(*values: Any) -> Iterator[Tensor]:
    """All of them, in order."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(*value)


def run(name: str, arguments: Arguments) -> list[Tensor]:
    """What an op returns and what it leaves in its arguments."""
    result = getattr(torch.ops.pxfast, name)(*arguments)
    return [*tensors(result, arguments)]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.cpu(), other.cpu())


def test_every_op_with_kernels_for_cuda_is_called() -> None:
    assert {name for name, _ in CALLS.values()} == {n for n, k in kernels_of.items() if "cuda" in k}


def test_the_calls_are_those_of_the_reference(call: tuple[str, Arguments]) -> None:
    name, arguments = call
    again = moved(arguments, "cpu")
    got, result = run(name, arguments), references[name](*again)
    expected = [*tensors(result, again)]
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_on_a_stream_of_its_own(gpu: torch.device, call: tuple[str, Arguments]) -> None:
    """The arguments arrive late on that stream: work on another one would find zeros."""
    name, arguments = call
    there = moved(arguments, gpu)
    expected = run(name, moved(there, gpu))
    late = moved(there, gpu)
    for tensor in tensors(late):
        tensor.zero_()
    torch.cuda.synchronize(gpu)
    side = torch.cuda.Stream(gpu)
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for tensor, value in zip(tensors(late), tensors(there), strict=True):
            tensor.copy_(value, non_blocking=True)
        got = run(name, late)
    side.synchronize()
    assert_same(got, expected)


def test_in_a_cuda_graph(gpu: torch.device, call: tuple[str, Arguments]) -> None:
    """Recorded with zeros, replayed with what stands there by then."""
    name, arguments = call
    there = moved(arguments, gpu)
    expected = run(name, moved(there, gpu))
    fixed = moved(there, gpu)
    for tensor in tensors(fixed):
        tensor.zero_()
    run(name, moved(fixed, gpu))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(name, fixed)
    for tensor, value in zip(tensors(fixed), tensors(there), strict=True):
        tensor.copy_(value)
    graph.replay()
    torch.cuda.synchronize(gpu)
    assert_same(got, expected)


def test_on_another_device_than_the_current_one(
    gpu: torch.device, call: tuple[str, Arguments]
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    name, arguments = call
    expected = run(name, moved(arguments, gpu))
    with torch.cuda.device(gpu):
        assert_same(run(name, moved(arguments, torch.device("cuda", 1))), expected)
