"""A report as one self-contained web page: no request leaves it, and it needs no network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from pxfast.report.charts import charts
from pxfast.report.figures import headline
from pxfast.report.layers import Report, Row
from pxfast.report.text import count, legend, percent

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(report: Report, path: str | os.PathLike[str], title: str | None = None) -> None:
    """Writes the web page of a report.

    Args:
        report: The report.
        path: The page's file.
        title: By default the criterion and the density.

    Raises:
        OSError: If the file cannot be written.
    """
    Path(path).write_text(page(report, title), encoding="utf-8")


def page(report: Report, title: str | None = None) -> str:
    """Returns one HTML page with style, script and charts inside, in light and dark.

    Args:
        report: The report; what it does not know is left out.
        title: By default the criterion and the density.
    """
    heading = escape(title or headline(report))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{heading}</title>
<style>
{_asset("page.css")}</style>
</head>
<body>
<h1>{heading}</h1>
{_tiles(report)}
<section class="charts">
<p>Every column is a layer, in the order of the model; hover over it for its name. The dashed line
is the density of all layers together.</p>
{charts(report)}
</section>
{_legend(report)}
<div class="scroll">
{_table(report)}
</div>
{_provenance(report.provenance)}
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return files("pxfast.report").joinpath(name).read_text(encoding="utf-8")


def _tiles(report: Report) -> str:
    """The totals."""
    told = [
        ("weights kept", percent(report.density), f"{report.kept:,} of {report.weights:,}"),
        ("layers", str(len(report.rows)), f"{sum(not row.kept for row in report.rows)} empty"),
    ]
    if report.flops is not None and report.flops_kept is not None:
        share = percent(report.flops_kept / report.flops if report.flops else 1.0)
        text = f"{count(report.flops_kept)} of {count(report.flops)} a sample"
        told.insert(1, ("FLOPs left", share, text))
    tiles = (
        f"<div><dt>{name}</dt><dd><b>{value}</b> {text}</dd></div>" for name, value, text in told
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _legend(report: Report) -> str:
    """What columns and marks mean; nothing if there is nothing to explain."""
    kinds = {row.mark: row.standing for row in report.rows}
    lines = [
        f'<dt class="{kinds.get(name, "")}">{escape(name)}</dt><dd>{escape(meaning)}</dd>'
        for name, meaning in legend(report).items()
    ]
    return f'<dl class="legend">{"".join(lines)}</dl>' if lines else ""


def _table(report: Report) -> str:
    """One row per layer; the cells carry the values that they are sorted by."""
    head = ["#", "weight", "shape", "weights", "kept", "density"]
    head += ["FLOPs", "FLOPs left"] if report.flops is not None else []
    head += ["path mass"] if report.has_path_mass else []
    head += ["mark"]
    titles = "".join(f'<th scope="col"><button>{name}</button></th>' for name in head)
    rows = "\n".join(_row(report, row, place) for place, row in enumerate(report.rows, start=1))
    return (
        f"<table><caption>Every layer; a click on a heading sorts.</caption><thead><tr>{titles}"
        f"</tr></thead><tbody>\n{rows}\n</tbody></table>"
    )


def _row(report: Report, row: Row, place: int) -> str:
    cells = [
        _cell(place, str(place)),
        f'<th scope="row">{escape(row.name)}</th>',
        f"<td>{'×'.join(map(str, row.shape))}</td>",
        _cell(row.weights, f"{row.weights:,}"),
        _cell(row.kept, f"{row.kept:,}"),
        _cell(row.density, percent(row.density), row.density),
    ]
    if report.flops is not None:
        cells += [_cell(value, count(value)) for value in (row.flops, row.flops_kept)]
    if report.has_path_mass:
        cells.append(_cell(row.path_mass, percent(row.path_mass), row.path_mass))
    cells.append(f'<td class="{row.standing}">{escape(row.mark)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(value: float | None, text: str, bar: float | None = None) -> str:
    """A number, with a bar behind it where it is a share."""
    style = f' style="--share:{min(1.0, bar):.4f}"' if bar is not None else ""
    kind = "number share" if bar is not None else "number"
    return f'<td class="{kind}" data-value="{"" if value is None else value}"{style}>{text}</td>'


def _provenance(provenance: Mapping[str, Any]) -> str:
    """How the masks were made, folded away."""
    lines = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in provenance.items()
        if value not in (None, "", [], {})
    )
    if not lines:
        return "<p>How the masks were made is not known.</p>"
    summary = "<summary>How the masks were made</summary>"
    return f'<details>{summary}<dl class="facts">{lines}</dl></details>'
