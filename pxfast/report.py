"""What is left of each layer: as JSON, as CSV, and as a picture.

The table in plain text is `Masks.summary`.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pxfast._optional import require
from pxfast.selection.masks import Layer, Masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED_LAYERS = 60  # up to here every layer gets a line with its name
_TICKS = 40
_LOG_FROM = 10  # highest over lowest density of layers from which the axis is logarithmic

_INK, _MUTED, _KEPT, _EMPTY = "#1f2933", "#9aa5b1", "#2563a8", "#c2410c"


def to_json(masks: Masks) -> str:
    """Returns the layers, the totals and the provenance as a JSON object.

    Args:
        masks: The masks.

    Returns:
        ``{"density", "kept", "weights", "layers": [{"name", "shape", "weights", "kept",
        "density"}, ...], "provenance"}``.
    """
    return json.dumps(
        {
            "density": masks.density,
            "kept": masks.kept,
            "weights": masks.total,
            "layers": [{**layer._asdict(), "density": layer.density} for layer in masks.layers],
            "provenance": masks.provenance,
        },
        indent=2,
    )


def to_csv(masks: Masks) -> str:
    """Returns one line per layer: name, shape, weights, kept, density (a fraction).

    Args:
        masks: The masks.

    Returns:
        Comma-separated values with a header line.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "shape", "weights", "kept", "density"])
    for layer in masks.layers:
        shape = "x".join(map(str, layer.shape))
        writer.writerow([layer.name, shape, layer.weights, layer.kept, layer.density])
    return text.getvalue()


def plot(masks: Masks, path: str | os.PathLike[str], title: str | None = None) -> None:
    """Draws the density of every layer beside that of the whole network, as PNG, SVG or PDF.

    Up to 60 layers are named one by one; beyond that they are drawn in order, every few named.
    The axis is logarithmic where the densities differ tenfold. Empty layers are marked in red.

    Args:
        masks: The masks.
        path: The picture's file; its suffix chooses the format.
        title: Line above the picture; by default the criterion and the density.

    Raises:
        MissingPackageError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    figure_kind = require("matplotlib.figure", "a picture of the densities", "pxfast[demo]").Figure
    layers = masks.layers
    if len(layers) <= _NAMED_LAYERS:
        figure = figure_kind(figsize=(8.5, 1.4 + 0.24 * len(layers)), layout="constrained")
        axes = figure.subplots()
        _draw_rows(axes, layers, masks.density)
    else:
        figure = figure_kind(figsize=(13, 5.5), layout="constrained")
        axes = figure.subplots()
        _draw_columns(axes, layers, masks.density)
    _finish(figure, axes, title or _title(masks))
    figure.savefig(path, dpi=150)


def _draw_rows(axes: Axes, layers: Sequence[Layer], overall: float) -> None:
    """One row per layer, the first on top, with its name and its number of kept weights."""
    rows = range(len(layers))
    left = _lowest(layers)
    shown = [max(layer.density, left) for layer in layers]
    colours = [_KEPT if layer.kept else _EMPTY for layer in layers]
    axes.hlines(rows, overall, shown, color=colours, linewidth=2, alpha=0.45)
    axes.scatter(shown, rows, color=colours, s=30, zorder=3)
    axes.axvline(overall, color=_MUTED, linewidth=1, zorder=0)
    _density_axis(axes, "x", left)
    axes.set_yticks(rows, [layer.name for layer in layers], fontsize=8)
    axes.set_ylim(len(layers) - 0.3, -0.7)
    counts = axes.twinx()
    counts.set_ylim(axes.get_ylim())
    texts = [f"{layer.kept:,} of {layer.weights:,}" if layer.kept else "empty" for layer in layers]
    counts.set_yticks(rows, texts, fontsize=7)
    for label, colour in zip(counts.get_yticklabels(), colours, strict=True):
        label.set_color(_INK if colour == _KEPT else _EMPTY)
    counts.tick_params(length=0)
    counts.spines[:].set_visible(False)


def _draw_columns(axes: Axes, layers: Sequence[Layer], overall: float) -> None:
    """One column per layer in order, every few named."""
    columns = range(len(layers))
    bottom = _lowest(layers)
    shown = [max(layer.density, bottom) for layer in layers]
    colours = [_KEPT if layer.kept else _EMPTY for layer in layers]
    axes.vlines(columns, overall, shown, color=colours, linewidth=1.2, alpha=0.45)
    axes.scatter(columns, shown, color=colours, s=12, zorder=3)
    axes.axhline(overall, color=_MUTED, linewidth=1, zorder=0)
    _density_axis(axes, "y", bottom)
    step = -(-len(layers) // _TICKS)
    named = columns[::step]
    axes.set_xticks(named, [layers[index].name for index in named], rotation=90, fontsize=6.5)
    axes.set_xlim(-1, len(layers))


def _density_axis(axes: Axes, name: str, low: float) -> None:
    """A density axis in percent from `low` to 100%, logarithmic unless it begins at 0."""
    ticker = require("matplotlib.ticker", "a picture of the densities", "pxfast[demo]")
    axis = axes.xaxis if name == "x" else axes.yaxis
    scale, limits = ("log", (low / 1.25, 1.25)) if low else ("linear", (-0.02, 1.02))
    axes.set(**{f"{name}scale": scale, f"{name}lim": limits, f"{name}label": "weights kept"})
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.grid(True, which="major", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _lowest(layers: Sequence[Layer]) -> float:
    """Where the axis begins and empty layers are drawn: 0, or where it is logarithmic above it."""
    densities = [layer.density for layer in layers if layer.kept]
    if not densities or max(densities) < _LOG_FROM * min(densities):
        return 0.0
    return min(densities) / 2


def _title(masks: Masks) -> str:
    criterion = masks.provenance.get("criterion")
    by = f" by {criterion}" if criterion else ""
    empty = sum(1 for layer in masks.layers if not layer.kept)
    tail = f", {empty} of {len(masks)} layers empty" if empty else ""
    return f"{100 * masks.density:.3g}% of {masks.total:,} weights kept{by} (grey line){tail}"


def _finish(figure: Figure, axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    figure.patch.set_facecolor("white")
