"""A report as a picture: density, FLOPs and path mass of every layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pxfast._optional import require
from pxfast.report.layers import Report, Row
from pxfast.report.text import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED_LAYERS = 60  # up to here every layer gets a line with its name
_TICKS = 40
_LONGEST = 40  # characters of a name
_LOG_FROM = 10  # highest over lowest positive value from which an axis is logarithmic

_INK, _MUTED, _GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
_COLOURS = {"kept": "#2563a8", "legal": "#b7791f", "bad": "#c2410c"}  # by a row's standing


@dataclass(frozen=True)
class Panel:
    """One quantity of every layer.

    Attributes:
        label: Of its axis.
        value: The quantity, for the mark that is drawn.
        behind: The quantity before pruning, drawn behind it, if that differs between layers.
        overall: A line to compare with: that of all layers together.
        form: How a tick is written.
    """

    label: str
    value: Callable[[Row], float]
    form: Callable[[float], str]
    behind: Callable[[Row], float] | None = None
    overall: float | None = None


class _Style(NamedTuple):
    """Sizes of what is drawn for a layer."""

    dot: int
    behind: int
    thin: float
    thick: float


_ROWS, _COLUMNS = _Style(30, 22, 1, 2), _Style(12, 7, 0.8, 1.2)


def panels(report: Report) -> list[Panel]:
    """Returns what there is to draw: the density, and what else the report knows."""
    found = [
        Panel("weights kept", lambda row: row.density, _tick, overall=report.density),
    ]
    if report.flops is not None:
        operations = Panel(
            "FLOPs (grey: before pruning)",
            lambda row: row.flops_kept or 0,
            count,
            behind=lambda row: row.flops or 0,
        )
        found.append(operations)
    if report.has_path_mass:
        found.append(Panel("path mass", lambda row: row.path_mass or 0, _tick))
    return found


def plot(report: Report, path: str | os.PathLike[str], title: str | None = None) -> None:
    """Draws density, FLOPs and path mass of every layer, as PNG, SVG or PDF.

    Up to 60 layers are named one by one, one below the other; beyond that they stand side by side
    in order, every few named. Long names lose their middle. Axes are logarithmic where values
    differ tenfold. Empty layers are marked: in red, or in amber where that is legal.

    Args:
        report: The report; what it does not know is not drawn.
        path: The picture's file; its suffix chooses the format.
        title: Line above the picture; by default the criterion and the density.

    Raises:
        MissingPackageError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    figure_kind = require("matplotlib.figure", "a picture of the report", "pxfast[demo]").Figure
    drawn, rows = panels(report), report.rows
    if len(rows) <= NAMED_LAYERS:
        size = (6.5 + 3 * (len(drawn) - 1), 1.6 + 0.24 * len(rows))
        figure = figure_kind(figsize=(size[0] + 2, size[1]), layout="constrained")
        widths = [1.6, *[1.0] * (len(drawn) - 1)]
        axes = figure.subplots(1, len(drawn), squeeze=False, width_ratios=widths)[0]
        for panel, one in zip(drawn, axes, strict=True):
            _draw(one, panel, rows, _ROWS)
        _name_rows(axes, rows)
    else:
        figure = figure_kind(figsize=(13, 2.2 + 2.6 * len(drawn)), layout="constrained")
        axes = figure.subplots(len(drawn), 1, squeeze=False, sharex=True)[:, 0]
        for panel, one in zip(drawn, axes, strict=True):
            _draw(one, panel, rows, _COLUMNS)
        step = -(-len(rows) // _TICKS)
        names = short_names(rows)[::step]
        axes[-1].set_xticks(range(0, len(rows), step), names, rotation=90, fontsize=7)
        axes[-1].set_xlim(-1, len(rows))
    figure.suptitle(title or _title(report), fontsize=10, color=_INK, x=0.01, ha="left")
    for one in axes:
        one.tick_params(colors=_INK)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(_MUTED)
    figure.patch.set_facecolor("white")
    figure.savefig(path, dpi=150)


def headline(report: Report) -> str:
    """Returns one line that says what is kept, by what, and how many layers are empty."""
    criterion = report.provenance.get("criterion")
    by = f" by {criterion}" if criterion else ""
    empty = sum(1 for row in report.rows if row.weights and not row.kept)
    tail = f", {empty} of {len(report.rows)} layers empty" if empty else ""
    return f"{100 * report.density:.3g}% of {report.weights:,} weights kept{by}{tail}"


def _title(report: Report) -> str:
    zero = "; × is none" if any(row.weights and not row.kept for row in report.rows) else ""
    return f"{headline(report)} (grey line: all layers{zero})"


def short_names(rows: Sequence[Row], longest: int = _LONGEST) -> list[str]:
    """Returns names of at most so many characters.

    If one is longer, all lose the parts that all share at either end, and then, where they are
    still longer, their middle.
    """
    names = [row.name for row in rows]
    if max(map(len, names)) > longest and len(names) > 1:
        parts = [name.split(".") for name in names]
        front = _shared(parts)
        back = _shared([list(reversed(part[front:])) for part in parts])
        names = [
            "…" * (front > 0) + ".".join(part[front : len(part) - back]) + "…" * (back > 0)
            for part in parts
        ]
    head = (longest - 1) // 2
    tail = longest - 1 - head
    return [x if len(x) <= longest else f"{x[:head]}…{x[-tail:]}" for x in names]


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many parts at the beginning are the same in all, leaving each at least one."""
    most = min(map(len, parts)) - 1
    same = (len({part[place] for part in parts}) == 1 for place in range(most))
    return next((place for place, one in enumerate(same) if not one), most)


def _draw(axes: Axes, panel: Panel, rows: Sequence[Row], style: _Style) -> None:
    """One row per layer, the first on top, or one column per layer in order."""
    low = lowest(panel, rows)
    places = range(len(rows))
    shown = [max(panel.value(row), low) for row in rows]
    colours = [_COLOURS[row.standing] for row in rows]
    across = style is _ROWS
    lines, line = (axes.hlines, axes.axvline) if across else (axes.vlines, axes.axhline)
    if panel.behind is not None:
        before = [max(panel.behind(row), low) for row in rows]
        x, y = (before, places) if across else (places, before)
        axes.scatter(x, y, color=_MUTED, s=style.behind, zorder=2)
        lines(places, shown, before, color=_MUTED, linewidth=style.thin, alpha=0.6)
    else:
        start = low if panel.overall is None else panel.overall
        lines(places, start, shown, color=colours, linewidth=style.thick, alpha=0.45)
    _dots(axes, *((shown, places) if across else (places, shown)), panel, rows, style.dot)
    if panel.overall is not None:
        line(panel.overall, color=_MUTED, linewidth=1, zorder=0)
    _value_axis(axes, "x" if across else "y", panel, low, rows)
    if across:
        axes.set_ylim(len(rows) - 0.3, -0.7)


def _name_rows(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    """Names on the left, counts or marks on the right of all panels."""
    places = range(len(rows))
    axes[0].set_yticks(places, short_names(rows), fontsize=8)
    for one in axes[1:]:
        one.set_yticks(places, [""] * len(rows))
        one.tick_params(axis="y", length=0)
    counts = axes[-1].twinx()
    counts.set_ylim(axes[-1].get_ylim())
    texts = [_note(row) for row in rows]
    counts.set_yticks(places, texts, fontsize=7)
    for label, row in zip(counts.get_yticklabels(), rows, strict=True):
        label.set_color(_COLOURS[row.standing] if row.mark else _INK)
    counts.tick_params(length=0)
    counts.spines[:].set_visible(False)


def _note(row: Row) -> str:
    if not row.kept and row.weights:
        return row.mark or "empty"
    return f"{row.kept:,} of {row.weights:,}" + (f", {row.mark}" if row.mark else "")


def _dots(
    axes: Axes, x: Sequence[float], y: Sequence[float], panel: Panel, rows: Sequence[Row], size: int
) -> None:
    """A dot for every value, a cross for those that are 0."""
    for marker, empty in (("o", False), ("x", True)):
        chosen = [place for place, row in enumerate(rows) if (not panel.value(row)) == empty]
        axes.scatter(
            [x[place] for place in chosen],
            [y[place] for place in chosen],
            color=[_COLOURS[rows[place].standing] for place in chosen],
            marker=marker,
            s=size,
            zorder=3,
        )


def _value_axis(axes: Axes, name: str, panel: Panel, low: float, rows: Sequence[Row]) -> None:
    """An axis from `low` to the highest value, logarithmic unless it begins at 0."""
    ticker = require("matplotlib.ticker", "a picture of the report", "pxfast[demo]")
    axis = axes.xaxis if name == "x" else axes.yaxis
    high = max([(panel.behind or panel.value)(row) for row in rows], default=0) or 1.0
    if panel.overall is not None:
        high = 1.0
    scale, limits = (
        ("log", (low / 1.25, 1.25 * high)) if low else ("linear", (-0.02 * high, 1.02 * high))
    )
    axes.set(**{f"{name}scale": scale, f"{name}lim": limits})
    axis.set_label_text(panel.label, fontsize=9)
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: panel.form(value)))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_tick_params(labelsize=8)
    axis.grid(True, which="major", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def lowest(panel: Panel, rows: Sequence[Row]) -> float:
    """Where the axis begins and zeros are drawn: 0, or where it is logarithmic below the values."""
    values = [panel.value(row) for row in rows]
    values += [] if panel.behind is None else [panel.behind(row) for row in rows]
    values += [] if panel.overall is None else [panel.overall]
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < _LOG_FROM * min(positive):
        return 0.0
    return min(positive) / 2


def _tick(value: float) -> str:
    return f"{100 * value:g}%"
