"""Maps of g that differ only near their edges.

The input of g is ones, so that positions which see no padding have equal path sums: rows in the
middle of a map are alike, and so are columns (runs, pathsum.py). A window that slides over them
sees the same each time. Rows and columns that only add more of the same are cut out before, and the
result has runs again, a little shorter ones: every layer widens the edges by what it pads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pxfast.paths.pathsum import PathSum, Runs, repeated

WORTH = 0.75  # the share of a map that may be left where its middle is cut out


@dataclass(frozen=True)
class Window:
    """How windows slide along one dimension of a map; ``reach`` is their extent."""

    stride: int
    padding: int
    reach: int

    def outputs(self, size: int) -> int:
        """How many there are."""
        return (size + 2 * self.padding - self.reach) // self.stride + 1


def slid(
    path: PathSum,
    shape: Sequence[int],
    windows: Sequence[Window],
    function: Callable[[Tensor], Tensor],
) -> PathSum:
    """Apply to a path sum what slides windows over the last dimensions of ``shape``."""
    space = range(len(shape) - len(windows), len(shape))
    known: dict[int, tuple[int, ...]] = {}
    once = path
    while isinstance(once, Runs) and once.dim in space:
        known[once.dim], once = once.lengths, once.once
    known |= {dim: (shape[dim],) for dim in space if once.shape[dim] == 1 and dim not in known}
    cuts = {
        dim: _cut(known[dim], window)
        for dim, window in zip(space, windows, strict=True)
        if dim in known
    }
    share = 1.0
    for dim, (lengths, _) in cuts.items():
        share *= sum(lengths) / max(1, shape[dim])
    if share > WORTH:
        return PathSum(function(path.widened(shape, space)), path.exponent)
    entries = once.mantissa
    for dim, (lengths, _) in cuts.items():
        entries = repeated(entries, dim, lengths)
    result = PathSum(function(entries), path.exponent)
    for dim in sorted(cuts, reverse=True):
        runs = cuts[dim][1]
        if len(runs) > 1 and max(runs) > 1:  # of one entry it is constant: narrow
            result = Runs(result, dim, runs)
    return result


def _cut(lengths: Sequence[int], window: Window) -> tuple[list[int], list[int]]:
    """Runs of the input of which as little is left as one window in their middle needs, and those
    of the output."""
    left, stride, size = list(lengths), window.stride, sum(lengths)
    middle = max(range(len(left)), key=left.__getitem__)
    before, after = sum(left[:middle]), sum(left[middle + 1 :])
    first = -(-(before + window.padding) // stride)  # output that sees nothing but the middle
    last = (size - after - window.reach + window.padding) // stride
    outputs, alike = window.outputs(size), max(1, last - first + 1)
    left[middle] -= stride * (alike - 1)
    ones = [1] * outputs
    return left, ones if alike == 1 else [*ones[:first], alike, *ones[last + 1 :]]
