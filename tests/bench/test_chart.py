"""The chart of the README shows what the records say."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from bench import chart
from bench._result import Result, load_all


def _record(subject: str, *rows: tuple[str, float, float, float]) -> Result:
    return Result(
        subject=subject,
        settings={},
        rows=[
            {
                "criterion": criterion,
                "density": density,
                "pxfast × forward beside official": {"median": ours, "low": 0.0, "high": 99.0},
                "official × forward": {"median": official, "low": 0.0, "high": 99.0},
                "pxfast MiB": 10 * ours,
                "official MiB": 1000.0,
            }
            for criterion, density, ours, official in rows
        ],
        job="score",
    )


def _bars(svg: str, kind: str) -> list[float]:
    root = ElementTree.fromstring(svg)
    shapes = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    return [float(str(r.get("width"))) for r in shapes if r.get("class") == kind][1:]  # no legend


def test_bars_are_as_long_as_the_medians() -> None:
    svg = chart.draw([_record("resnet20", ("px", 1.0, 2.0, 8.0), ("px", 0.5, 4.0, 6.0))])
    ours, official = _bars(svg, "ours"), _bars(svg, "official")
    assert ours[0::2] == pytest.approx([chart.PANEL / 4, chart.PANEL / 2], abs=0.1)
    assert official[0::2] == pytest.approx([chart.PANEL, chart.PANEL * 3 / 4], abs=0.1)
    assert ours[1::2] == pytest.approx([chart.PANEL * 0.02, chart.PANEL * 0.04], abs=0.1)


def test_other_rows_and_other_jobs_are_left_out() -> None:
    other = _record("resnet20", ("px", 1.0, 2.0, 8.0))
    other.job = "prune"
    shown = _record("resnet20", ("px", 0.1, 2.0, 8.0), ("px, data pass forced", 1.0, 2.0, 8.0))
    for results in ([], [other], [shown]):
        assert _bars(chart.draw(results), "ours") == []


def test_every_recorded_network_has_a_name() -> None:
    results = load_all()
    beside = [r for r in results if r.job == "score" and "official × forward" in r.rows[0]]
    recorded = {result.subject for result in beside}
    assert recorded <= set(chart.NETWORKS)
    assert re.findall(r'class="head" x="0"[^>]*>([^<]*)', chart.draw(results)) == [
        name for subject, name in chart.NETWORKS.items() if subject in recorded
    ]
