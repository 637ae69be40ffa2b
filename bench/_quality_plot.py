"""The picture of the quality benchmark: accuracy against density, one panel per setting.

`python bench/_quality_plot.py [FILE]` draws it again from bench/results.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from pathlib import Path

# This folder last: its select.py is not the standard library's.
sys.path.sort(key=lambda path: Path(path).resolve() == Path(__file__).resolve().parent)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bench._result import RESULTS, Result, load

# Of px and its relatives warm colours, of magnitude green ones, the rest blue and grey.
STYLES = {
    "px": ("#c1121f", "o", "-"),
    "px-joint": ("#f77f00", "s", "-"),
    "px-joint, data statistics": ("#f7b500", "s", "--"),
    "synflow": ("#1d4ed8", "^", "-"),
    "snip": ("#7c3aed", "v", "-"),
    "magnitude": ("#15803d", "D", "-"),
    "magnitude, layerwise": ("#65a30d", "D", "--"),
    "random": ("#6b7280", "x", "-"),
    "official": ("#0f172a", "+", ":"),
}
DENSE = "dense"
SVG = {  # text as text, in fonts of equal widths, and the same names for the same parts each time
    "svg.fonttype": "none",
    "svg.hashsalt": "quality",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
}
TITLES = {
    "after training": "trained after pruning",
    "right after pruning": "right after pruning",
    "the same with BatchNorm's statistics renewed": "statistics renewed",
}


def draw(result: Result, path: Path) -> None:
    """Draw a result of `bench/run.py quality` as SVG, PNG or PDF: a row of panels per network."""
    panels: dict[object, list[tuple[object, ...]]] = {}
    for row in result.rows:
        found = panels.setdefault(row["network"], [])
        panel = (row["network"], row["start"], row["accuracy %"])
        if panel not in found:
            found.append(panel)
    across = max(map(len, panels.values()))
    figure = Figure(figsize=(3.6 * across, 3.1 * len(panels) + 0.4), layout="constrained")
    grid = figure.subplots(len(panels), across, squeeze=False)
    for line, found in zip(grid, panels.values(), strict=True):
        for axes, panel in zip(line, found, strict=False):
            _panel(axes, result, panel)
        for axes in line[len(found) :]:
            axes.set_visible(False)
    handles = {line.get_label(): line for axes in grid.flatten() for line in axes.get_lines()}
    names = [name for name in handles if name in STYLES or name == DENSE]
    figure.legend(
        [handles[name] for name in names], names,
        loc="outside lower center", ncols=5, frameon=False, fontsize=9,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".svg":
        figure.savefig(path)
        return
    with rc_context(SVG):
        figure.savefig(path, metadata={"Date": None})
    path.write_text(_rounded(path.read_text(encoding="utf-8")), encoding="utf-8")


def _rounded(svg: str) -> str:
    """Return a picture with its coordinates to a hundredth of a point."""
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", svg)


def _panel(axes: Axes, result: Result, panel: tuple[object, ...]) -> None:
    network, start, accuracy = panel
    rows = [r for r in result.rows if (r["network"], r["start"], r["accuracy %"]) == panel]
    shown: list[float] = []
    for row in rows:
        points = {
            float(name[:-1]): cell
            for name, cell in row.items()
            if name.endswith("%") and isinstance(cell, dict)
        }
        densities = sorted(points)
        means = [points[density]["mean"] for density in densities]
        errors = [points[density]["error"] for density in densities]
        if row["method"] == DENSE:
            axes.axhline(means[0], color="#9aa5b1", linewidth=1, zorder=0, label=DENSE)
            continue
        shown = sorted({*shown, *densities})
        colour, marker, line = STYLES[str(row["method"])]
        bars = [(m - e, m + e, math.nan) for m, e in zip(means, errors, strict=True)]
        axes.plot(  # one line with gaps: a fraction of the size of an errorbar's parts
            [density for density in densities for _ in range(3)], list(itertools.chain(*bars)),
            color=colour, linewidth=1.2, solid_capstyle="butt",
        )  # fmt: skip
        axes.plot(densities, means, color=colour, marker=marker, markersize=4.5, linestyle=line,
                  linewidth=1.2, label=str(row["method"]))  # fmt: skip
    axes.set(xscale="log", ylim=(0, 102), xlabel="% of the weights kept", ylabel="test accuracy %")
    axes.set_xticks(shown, [f"{density:g}" for density in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(True, color="#e4e7eb", linewidth=0.7)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{network}, {start}: {TITLES[str(accuracy)]}", fontsize=9)


if __name__ == "__main__":
    picture = RESULTS.parent.parent / "docs" / "quality.svg"
    draw(load(RESULTS / "quality-digits-cpu.json"), Path([picture, *sys.argv[1:]][-1]))
