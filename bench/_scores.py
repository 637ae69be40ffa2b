"""What the jobs about selection measure on: scores in the tensor sizes of vision transformers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bench._result import Result

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16")}

# Width and number of layers.
VISION_TRANSFORMERS = {"vit-b": (768, 12), "vit-l": (1024, 24)}


def shapes(model: str) -> list[tuple[int, int]]:
    """Return the shapes of the prunable weights of ViT-B/16 or ViT-L/16 with 1000 classes."""
    width, depth = VISION_TRANSFORMERS[model]
    layer = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [(width, 3 * 16 * 16), *layer * depth, (1000, width)]


def make_scores(
    sizes: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Return lognormal scores, with a scale for every layer, row and column.

    Over all, the logarithm has a standard deviation of about 4: most of them lie within 14 decades,
    as the scores of networks do.
    """
    draw = torch.Generator().manual_seed(seed)
    scores = []
    for rows, columns in sizes:
        score = torch.randn(rows, columns, generator=draw).mul_(2)
        score += 2 * torch.randn(rows, 1, generator=draw)
        score += 2 * torch.randn(columns, generator=draw)
        score += 2 * torch.randn((), generator=draw)
        scores.append(score.exp_().to(dtype))
    return scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that the jobs of single ops share."""
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--layers", type=int, help="how many of the model's weights (all)")
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed")


def by_dtype(arguments: argparse.Namespace) -> Iterator[list[Tensor]]:
    """Make scores in the tensor sizes of ViT-B of every dtype that was asked for."""
    for name in arguments.dtypes:
        yield make_scores(shapes("vit-b")[: arguments.layers], DTYPES[name])


def result(
    arguments: argparse.Namespace, rows: list[dict[str, object]], notes: list[str]
) -> Result:
    """Make a result of rows about these scores."""
    count = sum(a * b for a, b in shapes("vit-b")[: arguments.layers])
    settings = {"scores": count, "repeats": arguments.repeats}
    return Result(subject="vit-b", settings=settings, rows=rows, notes=notes)


def reading(tensors: Sequence[Tensor]) -> Callable[[], Tensor]:
    """Return what reads as many bytes as the tensors have, at the bandwidth of memory: a sum."""
    ones = torch.ones(sum(tensor.nbytes for tensor in tensors) // 4)
    return ones.sum
