"""Selection as it is defined, slowly: for the tests of patterns, floors and sums."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st
from torch import Tensor

# Many ties, zeros of both signs, magnitudes that no float64 sum holds together.
POOL = [0.0, -0.0, 0.25, 0.5, 1.0, 1.0, 3.0, -2.0, 2.0**40, 2.0**-30, 1.1, 0.1]
SHAPES = [(3, 4), (2, 8), (4, 4, 1), (2, 4, 1, 2), (1, 8), (4, 1), (3, 2, 2)]


@dataclass
class Unit:
    """What is kept as one: its weights as (layer, flat index), their exact sum, if any lives."""

    layer: Hashable
    weights: list[tuple[str, int]]
    score: Fraction
    alive: bool


def single_weights(scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> list[Unit]:
    return [
        unit(name, [(name, index)], scores, alive)
        for name, score in scores.items()
        for index in range(score.numel())
    ]


def output_channels(scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> list[Unit]:
    units = []
    for name, score in scores.items():
        size = score.numel() // score.shape[0]
        for o in range(score.shape[0]):
            weights = [(name, o * size + i) for i in range(size)]
            units.append(unit(name, weights, scores, alive))
    return units


def unit(layer, weights, scores, alive) -> Unit:
    living = [(n, i) for n, i in weights if n not in alive or bool(alive[n].flatten()[i])]
    total = sum((Fraction(float(scores[n].flatten()[i])) for n, i in living), Fraction(0))
    return Unit(layer, weights, total, bool(living))


def keep(
    units: list[Unit],
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    count: int,
    min_density: float | None = None,
) -> dict[str, Tensor]:
    """Floors first, then the rest by score; of equals the earlier; only what is alive."""
    order = sorted((u for u in range(len(units)) if units[u].alive), key=lambda u: -units[u].score)
    chosen: set[int] = set()
    if min_density is not None:
        for layer in dict.fromkeys(u.layer for u in units):
            size = sum(u.layer == layer for u in units)
            floor = next(k for k in range(1, size + 1) if k / size >= min_density)
            chosen.update([u for u in order if units[u].layer == layer][:floor])
    chosen.update([u for u in order if u not in chosen][: count - len(chosen)])
    masks = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for u in chosen:
        for name, index in units[u].weights:
            masks[name][index] = name not in alive or bool(alive[name].flatten()[index])
    return {name: mask.view(scores[name].shape) for name, mask in masks.items()}


def n_of_m(scores: Tensor, alive: Tensor | None, n: int, m: int) -> Tensor:
    """The n best of every m consecutive inputs of [O, C, ...] at each kernel position."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    positions = list(itertools.product(*map(range, scores.shape[2:])))
    for o, start, where in itertools.product(
        range(scores.shape[0]), range(0, scores.shape[1], m), positions
    ):
        group = [(o, start + i, *where) for i in range(m)]
        living = [at for at in group if alive is None or bool(alive[at])]
        for at in sorted(living, key=lambda at: -float(scores[at]))[:n]:
            kept[at] = True
    return kept


@st.composite
def layers(draw: st.DrawFn, shapes=tuple(SHAPES)):
    """Scores of one to four layers with many ties, and earlier masks of some of them."""
    scores, alive = {}, {}
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    for index, shape in enumerate(draw(st.lists(st.sampled_from(shapes), min_size=1, max_size=4))):
        name, size = f"{'zyxw'[index]}.weight", torch.Size(shape).numel()
        values = draw(st.lists(st.sampled_from(POOL), min_size=size, max_size=size))
        scores[name] = torch.tensor(values, dtype=dtype).view(shape)
        if draw(st.booleans()):
            living = draw(st.lists(st.booleans(), min_size=size, max_size=size))
            alive[name] = torch.tensor(living).view(shape)
    return scores, alive


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(got) == list(expected)
    for name, mask in got.items():
        assert mask.dtype == torch.bool
        assert mask.is_contiguous()
        assert torch.equal(mask.cpu(), expected[name].cpu()), name
