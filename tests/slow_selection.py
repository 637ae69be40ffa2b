"""Selection as it is defined, slowly: for the tests of patterns, floors and sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from pxfast.errors import MaskError
from pxfast.patterns import Pattern
from pxfast.selection import Scores

# Many ties, zeros of both signs, magnitudes that float32 cannot add.
POOL = [0.0, -0.0, 0.25, 0.5, 1.0, 1.0, 3.0, -2.0, 2.0**40, 2.0**-30, 1.1, 0.1]
SHAPES = [(3, 4), (2, 8), (4, 4, 1), (2, 4, 1, 2), (1, 8), (4, 1), (3, 2, 2)]


@dataclass
class Unit:
    """What is kept as one: its weights as (layer, flat index), their sum, if any lives."""

    layer: Hashable
    weights: list[tuple[str, int]]
    score: float
    alive: bool


class Layers:
    """Scores and earlier masks as plain lists, and what is selected from them."""

    def __init__(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> None:
        self.given = scores, alive
        self.shapes = {name: score.shape for name, score in scores.items()}
        self.scores = {name: score.double().flatten().tolist() for name, score in scores.items()}
        self.alive = {
            name: alive[name].bool().flatten().tolist() if name in alive else [True] * len(values)
            for name, values in self.scores.items()
        }

    def unit(self, layer: Hashable, weights: list[tuple[str, int]]) -> Unit:
        living = [(name, index) for name, index in weights if self.alive[name][index]]
        total = math.fsum(self.scores[name][index] for name, index in living)  # rounded once
        return Unit(layer, weights, total, bool(living))

    def single_weights(self) -> list[Unit]:
        return [
            self.unit(name, [(name, index)])
            for name, values in self.scores.items()
            for index in range(len(values))
        ]

    def output_channels(self) -> list[Unit]:
        sizes = {name: math.prod(shape[1:]) for name, shape in self.shapes.items()}
        return [
            self.unit(name, [(name, output * sizes[name] + i) for i in range(sizes[name])])
            for name, shape in self.shapes.items()
            for output in range(shape[0])
        ]

    def keep(
        self, units: list[Unit], count: int, min_density: float | None = None
    ) -> dict[str, Tensor] | None:
        """Floors first, then the rest by score; of equals the earlier; only what is alive.

        None if the floors alone are more than what is to be kept.
        """
        living = [u for u in range(len(units)) if units[u].alive]
        order = sorted(living, key=lambda u: -units[u].score)
        chosen: set[int] = set()
        if min_density is not None:
            for layer in {unit.layer for unit in units}:
                size = sum(unit.layer == layer for unit in units)
                floor = next(k for k in range(1, size + 1) if k / size >= min_density)
                chosen.update([u for u in order if units[u].layer == layer][:floor])
        if len(chosen) > count:
            return None
        chosen.update([u for u in order if u not in chosen][: count - len(chosen)])
        kept = {weight for u in chosen for weight in units[u].weights}
        return {
            name: torch.tensor(
                [alive and (name, i) in kept for i, alive in enumerate(self.alive[name])]
            ).view(shape)
            for name, shape in self.shapes.items()
        }


def check_selection(
    data: st.DataObject,
    slow: Layers,
    units: list[Unit],
    min_density: float | None,
    pattern: Pattern | None = None,
    rest: Mapping[str, Tensor] | None = None,
) -> None:
    """Of a drawn number of units the same are kept, or none can be kept; `rest` are the masks of
    layers without units."""
    living = sum(unit.alive for unit in units)
    assume(living)
    count = data.draw(st.integers(1, living))
    expected = slow.keep(units, count, min_density)
    scores, alive = slow.given
    options = {"density": count / len(units), "min_density": min_density, "masks": alive}
    if expected is None:
        with pytest.raises(MaskError, match=r"but min_density reserves \d+"):
            Scores(scores).masks(pattern=pattern, **options)
        return
    masks = Scores(scores).masks(pattern=pattern, **options)
    assert_same(masks, expected | dict(rest or {}))
    if pattern is None:
        assert masks.kept == count


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
