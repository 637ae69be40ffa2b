"""A report as a table in plain text, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json

from pxfast.report.layers import MARKS, Report, Row

_LEGEND = {
    "FLOPs": "of one sample's forward, by torch.utils.flop_counter; left are those with kept "
    "weights (fewer only where sparse kernels run), and in the total those of layers without masks",
    "path mass": "share of the network's squared-path sum that runs through the layer's kept "
    "weights: 100% where every path has to pass",
}


def to_json(report: Report) -> str:
    """Returns the layers, the totals and the provenance as a JSON object.

    Args:
        report: The report.

    Returns:
        ``{"density", "kept", "weights", "flops", "flops_kept", "layers": [{"name", "shape",
        "weights", "kept", "density", "flops", "flops_kept", "path_mass", "mark"}, ...],
        "provenance"}``; null is what is not known.
    """
    return json.dumps(
        {
            "density": report.density,
            "kept": report.kept,
            "weights": report.weights,
            "flops": report.flops,
            "flops_kept": report.flops_kept,
            "layers": [{**_facts(row), "shape": list(row.shape)} for row in report.rows],
            "provenance": report.provenance,
        },
        indent=2,
    )


def to_csv(report: Report) -> str:
    """Returns one line per layer, with the columns of `to_json`; empty is what is not known.

    Args:
        report: The report.

    Returns:
        Comma-separated values with a header line. Densities and path masses are fractions.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_facts(report.rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**_facts(row), "shape": "x".join(map(str, row.shape))} for row in report.rows)
    return text.getvalue()


def table(report: Report) -> str:
    """Returns one line per layer and the totals, as plain text; columns that are known.

    Args:
        report: The report.
    """
    cells = [_cells(report, row) for row in report.rows]
    total = _totals(report)
    widths = [max(map(len, column)) for column in zip(_head(report), *cells, total, strict=True)]
    left = (0, 1, len(widths) - 1)
    lines = [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (_head(report), *cells, total)
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def legend(report: Report) -> dict[str, str]:
    """Returns what the columns and marks of a report mean, by their names, in plain words.

    Args:
        report: The report.
    """
    known = {"FLOPs": report.flops is not None, "path mass": report.has_path_mass}
    columns = {name: meaning for name, meaning in _LEGEND.items() if known[name]}
    return columns | {mark: MARKS[mark] for mark in report.marks}


def percent(fraction: float | None) -> str:
    """Returns a fraction as percent, with three digits that count; empty for None."""
    if fraction is None:
        return ""
    return (
        f"{100 * fraction:.3f}%" if fraction >= 1e-4 or not fraction else f"{100 * fraction:.1e}%"
    )


def count(number: float | None) -> str:
    """Returns a number of operations as 1.23M and the like; empty for None."""
    if number is None:
        return ""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _facts(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "shape": row.shape,
        "weights": row.weights,
        "kept": row.kept,
        "density": row.density,
        "flops": row.flops,
        "flops_kept": row.flops_kept,
        "path_mass": row.path_mass,
        "mark": row.mark,
    }


def _head(report: Report) -> list[str]:
    return [
        *("weight", "shape", "weights", "kept", "density"),
        *(["FLOPs", "FLOPs left"] if report.flops is not None else []),
        *(["path mass"] if report.has_path_mass else []),
        "",
    ]


def _cells(report: Report, row: Row) -> list[str]:
    operations = [count(row.flops), count(row.flops_kept)]
    return [
        *(row.name, "x".join(map(str, row.shape)), f"{row.weights:,}", f"{row.kept:,}"),
        percent(row.density),
        *(operations if report.flops is not None else []),
        *([percent(row.path_mass)] if report.has_path_mass else []),
        row.mark,
    ]


def _totals(report: Report) -> list[str]:
    operations = [count(report.flops), count(report.flops_kept)]
    return [
        *(f"all {len(report.rows)} layers", "", f"{report.weights:,}", f"{report.kept:,}"),
        percent(report.density),
        *(operations if report.flops is not None else []),
        *([""] if report.has_path_mass else []),
        "",
    ]
