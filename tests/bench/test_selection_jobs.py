"""The jobs about selection do what they say, on small scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import _scores, run, select, select_threshold

SMALL = {"vit-b": (32, 1), "vit-l": (48, 1)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scores, "VISION_TRANSFORMERS", SMALL)
    monkeypatch.setattr(select, "peak_memory", lambda prepare, **job: 1.5)


def test_scores_have_the_sizes_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sizes = [sum(a * b for a, b in _scores.shapes(model)) for model in ("vit-b", "vit-l")]
    assert [round(size / 1e6) for size in sizes] == [86, 304]


def test_select_measures_every_way_where_it_fits(tmp_path: Path) -> None:
    arguments = ["--repeats", "2", "--slow-limit", "100000", "--results", str(tmp_path)]
    result = run.main(["select", *arguments])
    ways = [row["way"] for row in result.rows if row["model"] == "vit-b"]
    slow = [row["way"] for row in result.rows if row["model"] == "vit-l"]
    assert set(ways) - set(slow) == set(select.SLOW)
    assert ways[:3] == ["pxfast threshold", "pxfast threshold and masks", select.BASELINE]


def test_the_ways_agree() -> None:
    scores = _scores.make_scores(_scores.shapes("vit-l"))
    ways = select.ways(scores, 0.02)
    value, masks = ways[select.BASELINE]().values, ways["pxfast threshold and masks"]()
    for score, mask in zip(scores, masks, strict=True):
        assert torch.equal(mask, score >= value)
    kept = ways["torch.topk"]().values
    assert len(kept) == sum(int(mask.sum()) for mask in masks) and kept.min() == value


@pytest.mark.parametrize("job", ["select-threshold", "write-masks"])
def test_jobs_of_single_ops_run(job: str, tmp_path: Path) -> None:
    assert run.main([job, "--repeats", "1", "--results", str(tmp_path)]).rows


def test_reads_are_counted() -> None:
    assert select_threshold.count_reads([torch.arange(9.0)], 3) in (1, 2)
