"""The committed results: where they come from, and what they must show."""

from __future__ import annotations

import json
import math
import re
import statistics

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


def accuracy(
    quality: Result, network: str, method: str, density: str, start: str = "init",
    after: str = "after training",
) -> float:  # fmt: skip
    row = row_of(quality, **{
        "network": network, "start": start, "accuracy %": after, "method": method,
    })  # fmt: skip
    cell = row[density]
    assert isinstance(cell, dict)
    return cell["mean"]


def test_means_and_errors_are_those_of_five_seeds(quality: Result) -> None:
    assert int(str(quality.settings["seeds"])) >= 5
    cells = [cell for row in quality.rows for cell in row.values() if isinstance(cell, dict)]
    assert len(cells) > 200
    for cell in cells:
        values = cell["each"]
        assert len(values) == quality.settings["seeds"] and None not in values
        assert cell["mean"] == pytest.approx(statistics.mean(values))
        assert cell["error"] == pytest.approx(statistics.stdev(values) / len(values) ** 0.5)


def test_px_is_20_points_above_random_at_2_percent(quality: Result) -> None:
    for network in ("resnet8", "vit"):
        px, random = (accuracy(quality, network, method, "2%") for method in ("px", "random"))
        assert px >= random + 20


def test_px_keeps_a_transformer_where_others_do_not(quality: Result) -> None:
    ours = [accuracy(quality, "vit", method, "5%") for method in ("px", "px-joint")]
    others = ("synflow", "snip", "magnitude", "random")
    assert min(ours) >= 15 + max(accuracy(quality, "vit", method, "5%") for method in others)


def test_px_is_ahead_on_a_transformer_that_is_trained_longer(quality: Result) -> None:
    longer = load(RESULTS / "quality-digits-3-times-longer-cpu.json")
    ours = [accuracy(longer, "vit", method, "5%") for method in ("px", "px-joint")]
    others = ("synflow", "snip", "magnitude", "magnitude, layerwise", "random")
    assert min(ours) >= 5 + max(accuracy(longer, "vit", method, "5%") for method in others)
    dense = [accuracy(result, "vit", "dense", "5%") for result in (longer, quality)]
    assert dense[0] > dense[1] + 5


def test_px_joint_is_best_right_after_pruning(quality: Result) -> None:
    others = ("px", "synflow", "snip", "magnitude", "magnitude, layerwise", "random", "official")
    for network in ("resnet8", "vit"):
        after = {"start": "pretrained", "after": "right after pruning"}
        best = accuracy(quality, network, "px-joint", "20%", **after)
        assert best > max(accuracy(quality, network, other, "20%", **after) for other in others)


def test_synflow_is_best_of_a_small_resnet_at_1_percent(quality: Result) -> None:
    methods = ("px", "px-joint", "px-joint, data statistics", "snip", "magnitude", "random")
    synflow = accuracy(quality, "resnet8", "synflow", "1%")
    assert synflow > max(accuracy(quality, "resnet8", method, "1%") for method in methods)


def test_a_billion_weights_take_less_than_three_times_their_memory() -> None:
    result = load(RESULTS / "giant-vit_giant_patch14_224-cpu.json")
    assert {row["step"] for row in result.rows} >= {"px", "prune"}
    for row in result.rows:
        assert float(str(row["weights M"])) > 1000 and float(str(row["peak × weights"])) < 3


def test_the_official_code_is_worse_than_random_on_batchnorm(quality: Result) -> None:
    for density in ("10%", "5%", "2%"):
        official = accuracy(quality, "resnet8", "official", density)
        assert official <= accuracy(quality, "resnet8", "random", density) - 15


def test_dense_bounds_the_pruned(quality: Result) -> None:
    for network in ("resnet8", "vit"):
        dense, px, random = (
            accuracy(quality, network, method, "2%") for method in ("dense", "px", "random")
        )
        assert dense >= px >= random


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
