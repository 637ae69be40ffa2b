"""The charts of the web page: bars and steps as inline SVG, their labels as HTML.

An SVG is stretched to the page's width, so that a phone shows all layers too; text would be
stretched with it, and therefore stands in HTML beside it. Colours are the page's variables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pxfast.report.figures import Panel, lowest, panels
from pxfast.report.layers import Report, Row

_HEIGHT = 100  # of an SVG's own coordinates; a layer is 1 wide
_LABELS = 6  # numbers below a chart


def charts(report: Report) -> str:
    """Returns all charts of a report as HTML."""
    return "\n".join(_chart(panel, report.rows) for panel in panels(report))


def _chart(panel: Panel, rows: Sequence[Row]) -> str:
    """One quantity over the layers in order."""
    scale = _Scale(panel, rows)
    shapes = [_layer(panel, row, place, scale) for place, row in enumerate(rows)]
    lines = "".join(
        f'<line class="grid" x1="0" x2="{len(rows)}" y1="{y}" y2="{y}"/>' for y, _ in scale.ticks
    )
    ticks = "".join(
        f'<span style="top:{y:.1f}%">{escape(panel.form(value))}</span>' for y, value in scale.ticks
    )
    overall = ""
    if panel.overall is not None:
        y = scale(panel.overall)
        overall = f'<line class="overall" x1="0" x2="{len(rows)}" y1="{y}" y2="{y}"/>'
    label = escape(panel.label)
    return (
        f'<figure><figcaption>{label}</figcaption><div class="chart"><div class="ticks">{ticks}'
        f'</div><svg viewBox="0 0 {len(rows)} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label} of every layer">{lines}{overall}{"".join(shapes)}</svg></div>'
        f'<div class="numbers">{_numbers(len(rows))}</div></figure>'
    )


def _layer(panel: Panel, row: Row, place: int, scale: _Scale) -> str:
    """A bar for what was there, one for what is left, and a text that hovering shows."""
    kind = row.standing
    mark = f", {row.mark}" if row.mark else ""
    told = f"{place + 1}. {row.name}: {panel.form(panel.value(row))}{mark}"
    parts = [f"<title>{escape(told)}</title>"]
    if panel.behind is not None:
        y = scale(panel.behind(row))
        parts.append(_bar(place, y, "before"))
    y = scale(panel.value(row))
    if kind != "kept" and panel.behind is None:  # a band over the whole height: there may be no bar
        parts.append(_bar(place, 0, f"{kind} band"))
    parts.append(_bar(place, y if kind == "kept" else min(y, _HEIGHT - 3.0), kind))
    return f"<g>{''.join(parts)}</g>"


def _bar(place: int, y: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{place + 0.1:.1f}" width="0.8" y="{y:.2f}" '
        f'height="{_HEIGHT - y:.2f}"/>'
    )


def _numbers(count: int) -> str:
    """A few numbers of layers, placed below their columns."""
    step = max(1, -(-count // _LABELS))
    places = range(0, count, step)
    return "".join(
        f'<span style="left:{100 * (place + 0.5) / count:.2f}%">{place + 1}</span>'
        for place in places
    )


class _Scale:
    """Where a value stands in an SVG, from the top; logarithmic where values differ tenfold.

    Attributes:
        ticks: Places and values of the grid's lines.
    """

    def __init__(self, panel: Panel, rows: Sequence[Row]) -> None:
        values = [(panel.behind or panel.value)(row) for row in rows]
        self._high = 1.0 if panel.overall is not None else max(values, default=0.0) or 1.0
        self._low = lowest(panel, rows)
        if self._low:
            first, last = math.log10(self._low), math.log10(self._high)
            step = max(1, math.ceil((last - first) / 4))
            powers = range(math.floor(last), math.ceil(first) - 1, -step)
            self.ticks = [(self(10.0**power), 10.0**power) for power in powers]
        else:
            self.ticks = [(self(part * self._high), part * self._high) for part in (1.0, 0.5, 0.0)]

    def __call__(self, value: float) -> float:
        if not self._low:
            return _HEIGHT * (1 - value / self._high)
        share = math.log(max(value, self._low) / self._low) / math.log(self._high / self._low)
        return _HEIGHT * (1 - share)
