"""The benchmark jobs do what they say: the same rounds, the same masks, the same networks."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nets
import pytest
import torch
from libraries import library

import pxfast
from bench import _setting, official_noise, prune, run, score, synflow
from bench._result import Result, load
from pxfast.reference import official
from pxfast.scoring import Scorer


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].bool(), second[name].bool()) for name in first
    )


def test_rounds_are_those_of_the_two_loops() -> None:
    model, images = nets.conv(channels=8, bias=False), torch.randn(6, 1, 5, 5)
    ours, theirs = {}, {}
    scorer = Scorer(model, images)
    for r in range(1, 6):
        ours, provenance = prune.pxfast_round(scorer, ours, 0.3 ** (r / 5))
        theirs = prune.official_round(model, images, theirs, 0.3 ** (r / 5))
    assert same(ours, pxfast.prune(model, images, density=0.3, rounds=5))
    assert same(theirs, official.prune(model, images, density=0.3, rounds=5))
    assert provenance["data_pass"] == "run"


def prune_job(monkeypatch, tmp_path: Path, *options: str) -> tuple[Result, list[float]]:
    """The result of a short job, and the densities that the official algorithm pruned to."""
    densities = []

    def official_round(model, images, masks, density):
        densities.append(density)
        time.sleep(0.01)
        return masks

    monkeypatch.setattr(prune, "official_round", official_round)
    monkeypatch.setattr(prune, "peak_memory", lambda prepare, **job: 1.0)
    small = ["--size", "8", "--per-class", "1", "--rounds", "5", "--results", str(tmp_path)]
    return run.main(["prune", *small, *options]), densities[1:]  # without the warm-up


def test_a_run_is_broken_down_into_steps(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(  # a step that cannot be overlooked
        pxfast.Scores,
        "masks",
        lambda *a, _f=pxfast.Scores.masks, **k: time.sleep(0.2) or _f(*a, **k),
    )
    result, densities = prune_job(monkeypatch, tmp_path)
    assert densities == [0.02 ** (r / 5) for r in range(1, 6)]
    for row in result.rows:
        steps = [float(str(row[f"{step} s"])) for step in (*prune.STEPS, "other")]
        assert sum(steps) == pytest.approx(row["pxfast s"], rel=1e-9)
        assert all(step > 0 for step in steps[1:])
        assert 0.2 * int(str(row["rounds"])) < steps[2] < row["pxfast s"]
    by_kind = {row[""]: row for row in result.rows}
    assert by_kind["rounds whose data pass is skipped"]["data pass s"] == 0
    assert by_kind["rounds that read the data"]["data pass s"] > 0
    assert not any("official" in note for note in result.notes)
    assert pxfast.Scores.masks.__name__ == "<lambda>"  # what watched it is gone


def test_the_official_algorithm_may_take_part_in_some_rounds_only(monkeypatch, tmp_path) -> None:
    result, densities = prune_job(monkeypatch, tmp_path, "--official-every", "2")
    assert densities == [0.02 ** (r / 5) for r in (1, 3, 5)]
    whole = result.rows[-1]
    assert whole["rounds"] == 5 and 0.05 < float(str(whole["official s"])) < 5
    assert "in one of 2 rounds only (1, 3, …)" in result.notes[-1]


def test_run_py_knows_every_job_and_writes_its_file(monkeypatch, tmp_path: Path) -> None:
    assert {"score", "prune", "official-noise", "quality"} <= run.jobs().keys()
    arguments = ["official-noise", "--size", "8", "--per-class", "1", "--results", str(tmp_path)]
    result = run.main(arguments)
    assert load(tmp_path / "official-noise-resnet20-cpu.json") == result
    assert result.command == "python bench/run.py " + " ".join(arguments)
    assert [row["network"] for row in result.rows]


def test_score_job_measures_every_criterion_and_density(monkeypatch, tmp_path: Path) -> None:
    weighed = {"px": 1.0, score.FORCED: 2.0, "px-joint": 3.0, "official": 4.0, "forward": 5.0}

    def kept(file: str | None) -> float:
        return 1.0 if file is None else pxfast.Masks.load(file).density

    monkeypatch.setattr(
        score, "peak_memory", lambda prepare, **job: weighed[job["candidate"]] + kept(job["masks"])
    )
    small = ["--size", "8", "--per-class", "1", "--repeats", "2", "--results", str(tmp_path)]
    result = run.main(["score", *small, "--densities", "1", "0.1"])
    assert [(row["criterion"], row["density"], row["data pass"]) for row in result.rows] == [
        ("px", 1.0, "skipped"),
        ("px", 0.1, "run"),
        ("px, data pass forced", 1.0, "run"),
        ("px-joint", 1.0, "run"),
        ("px-joint", 0.1, "run"),
    ]
    for name, expected in (
        ("pxfast MiB", [2.0, 1.1, 3.0, 4.0, 3.1]),
        ("official MiB", [5.0, 4.1, 5.0, 5.0, 4.1]),
        ("forward MiB", [6.0, 5.1, 6.0, 6.0, 5.1]),
    ):
        assert [row[name] for row in result.rows] == pytest.approx(expected, abs=1e-3)


def test_the_forced_data_pass_reads_the_data_and_changes_no_score(monkeypatch) -> None:
    model, images = nets.conv(channels=8, bias=False).eval(), torch.randn(6, 1, 5, 5)
    calls = []
    activation = score.Passes.activation
    monkeypatch.setattr(
        score.Passes, "activation", lambda *given: calls.append(1) or activation(*given)
    )
    skipped = score.run("px", model, images, None)
    assert calls == []
    forced = score.run(score.FORCED, model, images, None)
    assert calls == [1]
    assert score.run("px", model, images, None).provenance["data_pass"] != "run"
    for name, wanted in skipped.items():
        torch.testing.assert_close(forced[name], wanted)


@pytest.mark.parametrize("name", _setting.IMAGENET)
def test_networks_of_libraries_get_random_images(name: str) -> None:
    owner = "timm" if name in _setting.TIMM else "torchvision"
    library(owner)
    parser = argparse.ArgumentParser()
    _setting.add_arguments(parser, random_size=48)
    model, images = _setting.setting(
        **_setting.of(parser.parse_args(["--model", name, "--images", "2"]))
    )
    assert type(model).__module__.startswith(f"{owner}.models")
    assert not model.training and images.shape == (2, 3, 48, 48)
    assert _setting.settings(images) == {"data": "random", "images": 2, "image": [3, 48, 48]}
    assert _setting.subject(name, images) == f"{name}-48"


def test_the_model_chooses_the_images_unless_they_are_given() -> None:
    parser = argparse.ArgumentParser()
    _setting.add_arguments(parser)

    def of(*options: str) -> tuple[object, object]:
        chosen = _setting.of(parser.parse_args([*options]))
        return chosen["images"], chosen["size"]

    assert of() == of("--model", "vgg16") == (None, 32)
    assert of("--model", "resnet50") == (16, 224)
    assert of("--model", "vit_base_patch16_224") == (8, 224)
    assert of("--model", "vgg16", "--images", "4", "--size", "64") == (4, 64)
    with pytest.raises(SystemExit, match="got resnet20"):
        _setting.setting("resnet20", 32, 10, images=4)


def test_jobs_in_processes_of_their_own_run(tmp_path) -> None:
    small = {"small": True, "model": "resnet20", "size": 8, "per_class": 1}
    model, _ = _setting.setting("resnet20", 8, 1)
    file = str(tmp_path / "masks.safetensors")
    pxfast.score(model, torch.rand(2, 1, 8, 8)).masks(density=0.5).save(file)
    for candidate in ("px", score.FORCED, "px-joint", "official", "forward", "one image"):
        score.prepare_score(candidate, masks=None, **small)()
        score.prepare_score(candidate, masks=file, **small)()
    for candidate in ("pxfast", "official"):
        prune.prepare_prune(candidate, criterion="px", density=0.9, **small)()


def test_modules_of_jobs_are_the_ones_that_run_finds() -> None:
    assert run.jobs()["score"] is score
    assert run.jobs()["official-noise"] is official_noise


def test_the_loop_of_the_synaptic_flow_family_is_timed_with_both(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(synflow, "peak_memory", lambda prepare, **job: 1.0)
    slow = synflow.OfficialPX.score
    monkeypatch.setattr(
        synflow.OfficialPX, "score", lambda *a, **k: time.sleep(0.2) or slow(*a, **k)
    )
    small = ["--width", "4", "--per-class", "1", "--rounds", "3", "--density", "0.3"]
    result = run.main(["synflow", *small, "--results", str(tmp_path)])
    assert [row["PX of"] for row in result.rows] == ["pxfast", "official"]
    assert result.rows[1]["s"] > 0.6
    assert result.rows[0]["× pxfast"]["median"] == 1
    assert "largest difference" in result.notes[-1]


def test_official_scores_that_differ_are_seen(monkeypatch) -> None:
    model, loader = synflow.setting(4, 1)
    assert synflow.difference_of_scores(model, loader) < 1e-5
    score = official.score
    monkeypatch.setattr(official, "score", lambda *a: {n: 1.001 * s for n, s in score(*a).items()})
    assert synflow.difference_of_scores(model, loader) > 9e-4


@pytest.mark.parametrize("pruner", ["pxfast", "official"])
def test_the_rounds_whose_memory_is_measured_run_twice(pruner) -> None:
    rounds = synflow.prepare_rounds(pruner, width=4, per_class=1, density=0.3, small=True)
    rounds()
    rounds()
