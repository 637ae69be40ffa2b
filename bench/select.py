"""Global selection among the scores of a vision transformer, against torch's ways to do it.

pxfast (the threshold, and the threshold with all masks) is timed in turn with torch.kthvalue and
torch.topk of all scores in one tensor, which must be joined first: that is left out of their time
but not of their memory. torch.sort and torch.nn.utils.prune.global_unstructured take longest and
run once, where there are no more than --slow-limit scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bench._harness import Work, paired, peak_memory, ratio, spread
from bench._result import Result
from bench._scores import VISION_TRANSFORMERS, make_scores, reading, shapes
from pxfast.ops import select_threshold, write_masks

BASELINE = "torch.kthvalue"
SLOW = ("torch.sort", "torch.nn.utils.prune")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    models = list(VISION_TRANSFORMERS)
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--density", type=float, default=0.02, help="fraction of scores kept")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is timed")
    parser.add_argument(
        "--slow-limit", type=float, default=1e8, help="scores up to which the slow ones run"
    )


def measure(arguments: argparse.Namespace) -> Result:
    """Time and weigh every way to select, for every model."""
    rows, skipped = [], []
    for model in arguments.models:
        count = sum(rows * columns for rows, columns in shapes(model))
        slow = count <= arguments.slow_limit
        rows += _measure(model, arguments.density, arguments.repeats, slow)
        if not slow:
            skipped.append(f"{', '.join(SLOW)} were not run for {model}: {count} scores.")
    return Result(
        subject="-".join(arguments.models),
        settings={
            "dtype": "float32",
            "density": arguments.density,
            "repeats": arguments.repeats,
        },
        rows=rows,
        notes=[
            f"× {BASELINE} is its time in ours, both in one run, and leaves out that it must join "
            "the scores and gives no masks. Extra MiB is the peak of resident memory on top of the "
            "scores, masks included. % of read bandwidth is the time of one read of all scores, "
            "times the reads (two for the threshold, one for the masks), in the time taken.",
            *skipped,
        ],
    )


def ways(scores: Sequence[Tensor], density: float) -> dict[str, Callable[[], object]]:
    """Return every way to select, complete: from separate scores to what it gives."""
    keep = round(density * sum(score.numel() for score in scores))
    modules = [(_with_weight(score), "weight") for score in scores]

    def joined() -> Tensor:
        return torch.cat([score.view(-1) for score in scores])

    def with_masks() -> object:
        return write_masks(scores, select_threshold(scores, keep))

    def pruned() -> None:
        prune.global_unstructured(modules, prune.L1Unstructured, amount=1 - density)

    return {
        "pxfast threshold": lambda: select_threshold(scores, keep),
        "pxfast threshold and masks": with_masks,
        BASELINE: lambda: torch.kthvalue(flat := joined(), flat.numel() - keep + 1),
        "torch.topk": lambda: torch.topk(joined(), keep, sorted=False),
        "torch.sort": lambda: torch.sort(joined(), descending=True),
        "torch.nn.utils.prune": pruned,
    }


def prepare_select(way: str, model: str, density: float, small: bool) -> Work:
    """Return one way to select, for `peak_memory`."""
    sizes = [(1200, 1000)] if small else shapes(model)
    return ways(make_scores(sizes), density)[way]


def _with_weight(score: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(score, requires_grad=False)
    return module


def _measure(model: str, density: float, repeats: int, slow: bool) -> list[dict[str, object]]:
    scores = make_scores(shapes(model))
    every = ways(scores, density)
    flat = torch.cat([score.view(-1) for score in scores])
    keep = round(density * flat.numel())
    candidates: dict[str, Work] = {
        "read": reading(scores),
        **{name: every[name] for name in every if name.startswith("pxfast")},
        BASELINE: lambda: torch.kthvalue(flat, flat.numel() - keep + 1),
        "torch.topk": lambda: torch.topk(flat, keep, sorted=False),
    }
    seconds = paired(candidates, repeats=repeats, title=model)
    if slow:
        seconds["torch.sort"] = [_once(lambda: torch.sort(flat, descending=True))]
        seconds["torch.nn.utils.prune"] = [_once(every["torch.nn.utils.prune"])]
    return [_row(model, name, seconds, density) for name in seconds if name != "read"]


def _once(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _row(
    model: str, name: str, seconds: dict[str, list[float]], density: float
) -> dict[str, object]:
    reads = {"pxfast threshold": 2, "pxfast threshold and masks": 3}.get(name)
    own, base = seconds[name], seconds[BASELINE]
    median = spread(base)["median"]
    return {
        "model": model,
        "scores": sum(rows * columns for rows, columns in shapes(model)),
        "way": name,
        "ms": spread([1e3 * s for s in own]),
        f"× {BASELINE}": ratio(base if len(own) == len(base) else [median], own),
        "extra MiB": peak_memory(prepare_select, way=name, model=model, density=density),
        "% of read bandwidth": ratio([100 * reads * s for s in seconds["read"]], own)
        if reads
        else "",
    }
