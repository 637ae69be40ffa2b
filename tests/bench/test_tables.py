"""Tables in the documents are what bench/results says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench._result import RESULTS, Result, load, load_all, markdown, mean_with_error
from bench.tables import MARKED, MARKED_PAGES, ROOT, readme, results_page

FACTS: dict[str, object] = {
    "device": "cpu",
    "cpu": "A processor",
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0",
    "pxfast": "0.1.0",
    "commit": "0123456789abcdef",
    "uncommitted": [],
    "date": "2025-01-01",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows: list[dict[str, object]] = [
        {"method": "a", "accuracy %": 90.0, "time": {"median": 1.0, "low": 0.9, "high": 1.25}},
        {"method": "b", "accuracy %": 9.87654, "time": {"median": 3e-9, "low": 2e-9, "high": 4e-9}},
    ]
    result = Result("thing", {"seeds": 3}, rows, ["A note."], "job", "python run", FACTS)
    assert result.save(tmp_path) == tmp_path / "job-thing-cpu.json"
    Result("other", {}, [{"x": 7.0}], [], "job", "python run --other", FACTS).save(tmp_path)
    return tmp_path


def test_a_result_survives_its_file(folder: Path) -> None:
    result = load(folder / "job-thing-cpu.json")
    assert result.rows[1]["accuracy %"] == 9.87654
    assert load_all(folder) == [load(folder / "job-other-cpu.json"), result]


def test_markdown_rounds_and_shows_spreads(folder: Path) -> None:
    assert markdown(load(folder / "job-thing-cpu.json").rows).splitlines() == [
        "| method | accuracy % | time |",
        "| --- | --- | --- |",
        "| a | 90 | 1 (0.9–1.25) |",
        "| b | 9.88 | 3.0e-09 (2.0e-09–4.0e-09) |",
    ]


def test_readme_fills_marked_tables_and_is_stable(folder: Path) -> None:
    text = "A\n<!-- table: job-thing-cpu | method, time -->\nold\n<!-- end of table -->\nB\n"
    filled = readme(text, folder)
    assert filled.startswith("A\n<!-- table") and filled.endswith("\nB\n")
    assert "| a | 1 (0.9–1.25) |" in filled
    assert "old" not in filled and "accuracy" not in filled
    assert "`python run` on A processor, 2 cores" in filled and "0123456789" in filled
    assert readme(filled, folder) == filled


def test_readme_takes_each_table_from_its_own_file(folder: Path) -> None:
    marks = "<!-- table: {} -->\n<!-- end of table -->\n"
    filled = readme(marks.format("job-other-cpu") + marks.format("job-thing-cpu"), folder)
    first, second = filled.split("<!-- end of table -->")[:2]
    assert "| 7 |" in first and "accuracy" not in first
    assert "accuracy" in second and "| 7 |" not in second


def test_readme_takes_the_rows_that_meet_conditions(folder: Path) -> None:
    mark = "<!-- table: job-thing-cpu | time | method: b; accuracy %: 9.87654 -->\n"
    filled = readme(mark + "<!-- end of table -->", folder)
    assert "| 3.0e-09" in filled and "| 1 (0.9" not in filled and filled.startswith(mark)
    with pytest.raises(SystemExit, match="job-thing: no row has method: c"):
        readme("<!-- table: job-thing-cpu | time | method: c -->\n<!-- end of table -->", folder)


def test_means_are_shown_with_their_errors() -> None:
    cell = mean_with_error([90.0, 80.0])
    assert cell == {"mean": 85.0, "error": 5.0, "each": [90.0, 80.0]}
    assert markdown([{"a": cell, "b": mean_with_error([None]), "c": mean_with_error([])}]) == (
        "| a | b | c |\n| --- | --- | --- |\n| 85.0 ± 5.0 | fails |  |"
    )


def test_readme_follows_its_file(folder: Path) -> None:
    text = "<!-- table: job-thing-cpu -->\n<!-- end of table -->"
    before = readme(text, folder)
    path = folder / "job-thing-cpu.json"
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["rows"][0]["accuracy %"] = 91.0
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert readme(before, folder) != before


def test_committed_tables_are_those_of_the_results() -> None:
    for path in MARKED_PAGES:
        front = path.read_text(encoding="utf-8")
        assert MARKED.search(front), f"{path.name} shows no measured table"
        assert front == readme(front)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == results_page(load_all(RESULTS))
