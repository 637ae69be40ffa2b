"""The picture of the quality benchmark: accuracy against density, one panel per setting.

`python bench/_quality_plot.py` draws it again from bench/results.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
TITLES = {
    "after training": "trained after pruning",
    "right after pruning": "right after pruning",
    "the same with BatchNorm's statistics renewed": "right after pruning, statistics renewed",
}


def draw(result: Result, path: Path) -> None:
    """Draw a result of `bench/run.py quality` as SVG, PNG or PDF."""
    panels = list(dict.fromkeys((r["network"], r["start"], r["accuracy %"]) for r in result.rows))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.2 * across, 3.2 * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, result, panel)
    for axes in grid[len(panels):]:  # fmt: skip
        axes.set_visible(False)
    lines = {line.get_label(): line for axes in grid for line in axes.get_lines()}
    figure.legend(
        [lines[name] for name in lines if name in STYLES or name == DENSE],
        [name for name in lines if name in STYLES or name == DENSE],
        loc="outside lower center", ncols=5, frameon=False, fontsize=9,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


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
        axes.errorbar(
            densities, means, errors, color=colour, linestyle=line, linewidth=1.2, capsize=2
        )
        axes.plot(densities, means, color=colour, marker=marker, markersize=4.5, linestyle=line,
                  linewidth=1.2, label=str(row["method"]))  # fmt: skip
    axes.set(xscale="log", ylim=(0, 102), xlabel="weights kept", ylabel="test accuracy")
    axes.set_xticks(shown, [f"{density:g}%" for density in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.0f}%")
    axes.grid(True, color="#e4e7eb", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{network}, {start}: {TITLES[str(accuracy)]}", fontsize=9, loc="left")


if __name__ == "__main__":
    for file in sorted(RESULTS.glob("quality-digits-*.json")):
        draw(load(file), RESULTS.parent.parent / "docs" / "quality.svg")
