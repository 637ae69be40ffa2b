"""The committed results: where they come from, and what they must show."""

from __future__ import annotations

import json
import math
import re

import pytest

from bench._result import RESULTS, Result, load

FILES = sorted(RESULTS.glob("*.json"))
FACTS = {"device", "cpu", "cores", "threads", "system", "python", "torch", "pxfast", "date"}


def row_of(result: Result, **wanted: object) -> dict[str, object]:
    (row,) = [r for r in result.rows if all(r[key] == value for key, value in wanted.items())]
    return row


def numbers_in(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for entry in value.values() for number in numbers_in(entry)]
    if isinstance(value, list):
        return [number for entry in value for number in numbers_in(entry)]
    return [float(value)] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path) -> None:
    result = load(path)
    assert path.stem == f"{result.job}-{result.subject}-{result.machine['device']}"
    assert result.machine.keys() >= FACTS and all(result.machine[fact] for fact in FACTS)
    assert re.fullmatch(r"[0-9a-f]{40}", str(result.machine["commit"]))
    assert result.machine["uncommitted"] == [], "measured on code that no commit holds"
    assert result.command.startswith(f"python bench/run.py {result.job}")
    assert result.settings and result.rows


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_hold_no_nan(path) -> None:
    assert all(math.isfinite(number) for number in numbers_in(json.loads(path.read_text())))


@pytest.fixture(scope="module")
def quality() -> Result:
    return load(RESULTS / "quality-digits-cpu.json")


def accuracy(quality: Result, method: str) -> float:
    return float(str(row_of(quality, method=method)["test accuracy %"]))


def test_px_is_20_points_above_random_at_2_percent(quality: Result) -> None:
    assert quality.settings["density"] == 0.02
    assert int(str(quality.settings["seeds"])) >= 3
    assert row_of(quality, method="px")["density"] == pytest.approx(0.02, abs=1e-4)
    assert row_of(quality, method="random")["density"] == pytest.approx(0.02, abs=1e-4)
    assert accuracy(quality, "px") >= accuracy(quality, "random") + 20


def test_the_official_code_is_near_chance(quality: Result) -> None:
    assert accuracy(quality, "official") <= 20


def test_dense_bounds_the_pruned(quality: Result) -> None:
    assert accuracy(quality, "dense") >= accuracy(quality, "px") >= accuracy(quality, "random")


def test_official_scores_are_noise_with_batchnorm_only() -> None:
    result = load(RESULTS / "official-noise-resnet20-cpu.json")
    with_norm, control = result.rows
    epsilons = float(str(with_norm["ratio of epsilons"]))
    assert epsilons / 10 < float(str(with_norm["float64 ÷ float32, median layer"])) < 10 * epsilons
    assert float(str(with_norm["highest layer"])) < 1e-4
    assert float(str(control["float64 ÷ float32, median layer"])) == pytest.approx(1, abs=1e-3)


@pytest.fixture(scope="module")
def rounds_with_data() -> dict[str, object]:
    result = load(RESULTS / "prune-resnet20-cpu.json")
    return row_of(result, **{"": "rounds that read the data"})


def test_rounds_that_read_the_data_are_fast(rounds_with_data: dict[str, object]) -> None:
    assert float(str(rounds_with_data["official ÷ pxfast"])) >= 2.5


def test_rounds_that_read_the_data_are_small(rounds_with_data: dict[str, object]) -> None:
    mine, official = (float(str(rounds_with_data[f"{who} MiB"])) for who in ("pxfast", "official"))
    assert mine < 0.5 * official


def test_selection_is_ten_times_faster_than_kthvalue_in_little_memory() -> None:
    result = load(RESULTS / "select-vit-b-vit-l-cpu.json")
    for model in ("vit-b", "vit-l"):
        for way in ("pxfast threshold", "pxfast threshold and masks"):
            ratio = row_of(result, model=model, way=way)["× torch.kthvalue"]
            assert isinstance(ratio, dict) and ratio["median"] >= 10
        extra = row_of(result, model=model, way="pxfast threshold")["extra MiB"]
        assert float(str(extra)) * 2**20 < 1e6
