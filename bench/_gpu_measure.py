"""Measures on one device for `python bench/gpu.py`: ceilings, ops, scores of whole models.

    python -m bench._gpu_measure PART OUT [--device cpu]

A part writes its rows to OUT as it goes, one JSON object a line, so that what is finished survives
a time limit or a kernel that takes the process down.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import pxfast
from bench import _libraries
from bench._gpu_cases import Case, cases, over, ring
from bench._harness import Work
from pxfast.ops._declare import references
from pxfast.reference import official

SECONDS = 0.25  # that a candidate is timed for
RING_BYTES = 4 * 64 * 2**20  # four times the last-level cache of an H200
MODELS = ("vit_base_patch16_224", "vit_large_patch16_224", "vit_giant_patch14_224")
Row = dict[str, object]


def seconds_of(work: Work, device: torch.device, budget: float = SECONDS) -> float:
    """The median time of one call, after a call that is not counted; on a GPU by its own events."""
    work()
    if device.type != "cuda":
        return statistics.median(_by_clock(work) for _ in range(3))
    torch.cuda.synchronize(device)
    once = max(1e-6, _by_clock(lambda: (work(), torch.cuda.synchronize(device))))
    times = []
    for _ in range(min(200, max(3, int(budget / once)))):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize(device)
    return statistics.median(1e-3 * start.elapsed_time(end) for start, end in times)


def _by_clock(work: Work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ceilings(device: torch.device, size: int = 2**28, side: int = 8192) -> Iterator[Row]:
    """Bytes copied (read + written) and flops of matrix products, a second."""
    x = torch.empty(size, device=device)
    y = torch.empty_like(x)
    seconds = seconds_of(functools.partial(y.copy_, x), device)
    yield {"ceiling": "copy", "rate": 2 * x.nbytes / seconds}
    del x, y
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        work = functools.partial(torch.matmul, a, b)
        yield {"ceiling": str(dtype)[6:], "rate": 2 * side**3 / seconds_of(work, device)}


def time_case(
    case: Case,
    device: torch.device,
    copied: float,
    rates: dict[str, float],
    fill: int = RING_BYTES,
) -> Row:
    """One row: pxfast, plain torch and, where the case asks for it, torch.compile of that."""
    with matmul_precision(case.precision):
        return _time_case(case, device, copied, rates, ring(case, device, fill))


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """torch's precision of float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _time_case(
    case: Case,
    device: torch.device,
    copied: float,
    rates: dict[str, float],
    arguments: list[tuple[object, ...]],
) -> Row:
    ours, plain = case.pair
    row: Row = {"what": case.what, "size": case.size}
    candidates = {"pxfast": ours, "torch": plain}
    if case.compiled:
        candidates["compiled"] = torch.compile(plain)
    seconds = {name: seconds_of(over(step, arguments), device) for name, step in candidates.items()}
    floor = case.floor(copied, rates)
    row |= {f"{name} ms": 1e3 * s for name, s in seconds.items()}
    row["× torch"] = seconds["torch"] / seconds["pxfast"]
    row["% of floor"] = 100 * floor / seconds["pxfast"]
    return row


def ops_rows(device: torch.device, which: list[Case] | None = None) -> Iterator[Row]:
    """Every case; one that fails says why and leaves the others."""
    rates = {str(row["ceiling"]): float(row["rate"]) for row in ceilings(device)}  # type: ignore[arg-type]
    copied = rates.pop("copy")
    for case in cases() if which is None else which:
        try:
            yield time_case(case, device, copied, rates)
        except Exception as error:
            yield {"what": case.what, "size": case.size, "failed": f"{error}"[:300]}


def model_rows(device: torch.device, names: tuple[str, ...] = MODELS) -> Iterator[Row]:
    """Scores of whole models: px at its first round and px-joint, with kernels and without, and the
    official algorithm.

    In its first round px is the path pass alone, at batch 1: its floor are three passes over the
    weights, which are read in the forward and in the backward, and whose scores are written.
    """
    copied = next(float(str(row["rate"])) for row in ceilings(device) if row["ceiling"] == "copy")
    for name in names:
        model, images = _model(name, device)
        floor = 3 * sum(p.nbytes for p in model.parameters()) / copied
        px = functools.partial(pxfast.score, model, images)
        joint = functools.partial(px, criterion="px-joint")
        for what, work in (
            ("forward", functools.partial(_forward, model, images)),
            ("px", px),
            ("px in plain torch", functools.partial(_in_plain_torch, px)),
            ("px-joint", joint),
            ("px-joint in plain torch", functools.partial(_in_plain_torch, joint)),
            ("official", functools.partial(official.score, model, images, {})),
        ):
            row: Row = {"what": f"{name}, {what}", "size": "8 images"}
            try:
                row["ms"] = 1e3 * (seconds := seconds_of(work, device, budget=1.0))
                if what == "px":
                    row["% of floor"] = 100 * floor / seconds
            except Exception as error:
                row["failed"] = f"{error}"[:300]
            yield row
        del model, images


def compiled_rows(device: torch.device, names: tuple[str, ...] = MODELS[:1]) -> Iterator[Row]:
    """The whole score in plain torch as one graph, compiled by torch."""
    for name in names:
        model, images = _model(name, device)
        for criterion in ("px", "px-joint"):
            row: Row = {"what": f"{name}, {criterion} in compiled torch", "size": "8 images"}
            try:
                begin = time.perf_counter()
                work = functools.partial(torch.compile(traced(model, images, criterion)), images)
                work()
                row["compile s"] = time.perf_counter() - begin
                row["ms"] = 1e3 * seconds_of(work, device, budget=1.0)
            except Exception as error:
                row["failed"] = f"{error}"[:300]
            yield row


def traced(model: nn.Module, images: Tensor, criterion: str) -> torch.fx.GraphModule:
    """A score in plain torch as a graph of its operations, which takes images and returns scores.

    What the score reads from tensors on its way, such as whether R is finite, is read while it is
    traced and stands in the graph as a constant.
    """

    def scores(images: Tensor) -> list[Tensor]:
        with _ReadWhileTraced():
            return [s.clone() for s in pxfast.score(model, images, criterion=criterion).values()]

    with plain_torch():
        module = make_fx(scores)(images)
    module.graph.eliminate_dead_code()  # what was only read
    module.recompile()
    return module


class _ReadWhileTraced(TorchDispatchMode):
    """Numbers that Python reads from tensors are those of the run that is traced."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = torch.Tag.data_dependent_output in func.tags
        with disable_proxy_modes_tracing() if reads else nullcontext():
            return func(*args, **(kwargs or {}))


def _model(name: str, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A network of timm on the device, and 8 random images for it."""
    with device:
        model: nn.Module = _libraries.load("timm").create_model(name).eval()
    size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    return model, torch.randn(8, *size, device=device)


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Every op runs as its reference, in eager torch."""
    with ExitStack() as patches:
        for name, reference in references.items():
            patches.enter_context(mock.patch.object(torch.ops.pxfast, name, reference))
        yield


def _in_plain_torch(work: Work) -> None:
    with plain_torch():
        work()


PARTS = {
    "ceilings": ceilings,
    "ops": ops_rows,
    "models": model_rows,
    "compiled": compiled_rows,
}


def main(argv: list[str] | None = None) -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    arguments = parser.parse_args(argv)
    with open(arguments.out, "a", encoding="utf-8") as out:
        for row in PARTS[arguments.part](arguments.device):
            print(json.dumps(row), file=out, flush=True)
            print(row, flush=True)


if __name__ == "__main__":
    main()
