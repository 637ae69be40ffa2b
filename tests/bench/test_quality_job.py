"""The quality benchmark prunes with what it says, trains what it says, and goes on after a kill."""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from pathlib import Path

import nets
import pytest
import torch
from torch import nn

import pxfast
from bench import _digit_networks, quality
from bench._cells import Cells, digest
from bench._machine import ROOT
from bench._methods import METHODS, masks_at, segments
from pxfast.reference import official
from pxfast.training import sgd


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].bool(), second[name].bool()) for name in first
    )


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nets.conv(channels=8, bias=False).eval()


@pytest.fixture
def data() -> quality.Data:
    return torch.randn(6, 1, 5, 5), torch.arange(6) % 3


# ---- methods


def test_a_divided_schedule_is_the_whole_one_where_the_densities_lie_on_it() -> None:
    parts = segments([0.5, 0.25, 0.0625], 8)
    assert [len(part) for part in parts] == [2, 2, 4]
    whole = [density for part in parts for density in part]
    assert whole == pytest.approx([0.0625 ** (r / 8) for r in range(1, 9)], rel=1e-12)
    assert [part[-1] for part in parts] == [0.5, 0.25, 0.0625]


def test_every_density_has_a_round_of_its_own() -> None:
    assert segments([0.9, 0.8, 0.1], 3) == [[0.9], [0.8], [0.1]]


@pytest.mark.parametrize("criterion", ["px", "px-joint", "synflow"])
def test_shared_rounds_give_the_masks_of_a_run_to_each_density(net, data, criterion) -> None:
    found = masks_at(criterion, net, data, [0.5, 0.25], 4, seed=0)
    for rounds, (density, masks) in zip((2, 4), ((0.5, found[0]), (0.25, found[1])), strict=True):
        assert same(masks, pxfast.prune(net, data, density=density, rounds=rounds,
                                        criterion=criterion))  # fmt: skip


def test_official_rounds_are_those_of_its_loop(net, data) -> None:
    found = masks_at("official", net, data, [0.5, 0.25], 4, seed=0)
    assert same(found[0], official.prune(net, data, density=0.5, rounds=2))
    assert same(found[1], official.prune(net, data, density=0.25, rounds=4))


def test_methods_at_once_keep_their_highest_scores(net, data) -> None:
    (by_layer,) = masks_at("magnitude, layerwise", net, data, [0.5], 1, seed=0)
    (by_all,) = masks_at("magnitude", net, data, [0.5], 1, seed=0)
    for name, mask in by_layer.items():
        weight = net.get_parameter(name).detach().abs()
        assert mask.sum() == round(0.5 * mask.numel())
        assert weight[mask].min() >= weight[~mask].max()
    assert pxfast.Masks(by_all).kept == round(0.5 * pxfast.Masks(by_all).total)
    assert not same(by_layer, by_all)


def test_random_masks_are_exact_and_seeded(net, data) -> None:
    (first,), (again,), (other,) = (
        masks_at("random", net, data, [0.2], 1, seed=seed) for seed in (0, 0, 1)
    )
    assert same(first, again) and not same(first, other)
    assert pxfast.Masks(first).kept == round(0.2 * pxfast.Masks(first).total)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", _digit_networks.NETWORKS)
def test_every_method_prunes_every_network(name: str, method: str) -> None:
    network = _digit_networks.NETWORKS[name]
    torch.manual_seed(0)
    model = network.build().eval()
    data = torch.randn(4, 1, 8, 8), torch.arange(4)
    first, second = masks_at(method, model, data, [0.5, 0.3], 2, seed=0)
    assert pxfast.Masks(first).density == pytest.approx(0.5, rel=0.01)
    assert pxfast.Masks(second).density == pytest.approx(0.3, rel=0.01)
    assert network.batchnorm == any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_a_method_that_fails_says_why_and_keeps_what_it_found(net, data, monkeypatch) -> None:
    def fails(model, data, parts, seed):
        yield {"0.weight": torch.ones(1)}
        raise pxfast.errors.RangeError("no path is left")

    monkeypatch.setitem(METHODS, "px", fails)
    found = masks_at("px", net, data, [0.5, 0.4, 0.3], 3, seed=0)
    assert list(found[0]) == ["0.weight"]
    assert found[1:] == ["no path is left"] * 2


# ---- finished parts


def test_finished_parts_are_used_again_only_where_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cells.jsonl"
    cells = Cells(path, "a")
    assert ("vit", 1) not in cells
    cells.keep(("vit", 1), {"trained": 90.0})
    assert Cells(path, "a")["vit", 1] == {"trained": 90.0}
    assert ("vit", 1) not in Cells(path, "b")


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    Cells(path, "a").keep(("vit", 1), {"trained": 90.0})
    path.write_text(path.read_text() + '{"key": ["vit", 2], "of"')
    cells = Cells(path, "a")
    assert ("vit", 1) in cells and ("vit", 2) not in cells


def test_the_digest_follows_settings_and_sources(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "pxfast").mkdir()
    (tmp_path / "bench").mkdir()
    source, job = tmp_path / "pxfast" / "a.py", tmp_path / "bench" / "job.py"
    source.write_text("1")
    job.write_text("2")
    monkeypatch.setattr("bench._cells.ROOT", tmp_path)
    found = {digest(["job.py"], {"rounds": 1}), digest(["job.py"], {"rounds": 2})}
    (tmp_path / "README.md").write_text("a commit that does not matter")
    assert digest(["job.py"], {"rounds": 1}) in found and len(found) == 2
    source.write_text("3")
    found.add(digest(["job.py"], {"rounds": 1}))
    job.write_text("4")
    found.add(digest(["job.py"], {"rounds": 1}))
    assert len(found) == 4


# ---- the job


@pytest.fixture
def arguments(monkeypatch, tmp_path: Path) -> argparse.Namespace:
    monkeypatch.setattr(quality, "FOLDER", tmp_path / "quality")
    tiny = _digit_networks.Network(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)
        ),
        sgd, (0.1, 3), (0.05, 1), batchnorm=True,
    )  # fmt: skip
    monkeypatch.setitem(quality.NETWORKS, "tiny", tiny)
    return argparse.Namespace(
        networks=["tiny"], starts=["init", "pretrained"], methods=["magnitude", "random"],
        densities=[0.2, 0.1], seeds=2, rounds=2, longer=1, plot=tmp_path / "quality.svg",
    )  # fmt: skip


def test_the_job_measures_every_accuracy_and_draws_it(arguments: argparse.Namespace) -> None:
    result = quality.measure(arguments)
    rows = {(r["start"], r["accuracy %"], r["method"]): r for r in result.rows}
    trained, pruned = quality.ACCURACIES["trained"], quality.ACCURACIES["pruned"]
    assert len(rows) == len(result.rows) == 3 * 4  # (init: 1 accuracy, pretrained: 3) x methods
    assert ("init", pruned, "random") not in rows
    dense = rows["init", trained, "dense"]["20%"]
    assert dense["mean"] > rows["init", trained, "random"]["10%"]["mean"]
    assert rows["init", trained, "random"]["50%"] == ""  # tested without training only
    assert rows["pretrained", pruned, "magnitude"]["50%"]["mean"] > 50
    # A trained network that is not pruned keeps its accuracy, and its statistics are its own.
    assert rows["pretrained", pruned, "dense"]["10%"]["each"] == dense["each"]
    for row in result.rows:
        for cell in (row["20%"], row["10%"]):
            first, second = cell["each"]
            assert cell["mean"] == pytest.approx((first + second) / 2)
            assert cell["error"] == pytest.approx(abs(first - second) / 2)  # s / √2
    picture = arguments.plot.read_text(encoding="utf-8")
    assert picture.count(">tiny, ") == 4 and ">magnitude</text>" in picture


def test_a_table_has_a_column_for_what_was_measured_alone(arguments) -> None:
    arguments.starts, arguments.methods, arguments.seeds = ["init"], ["random"], 1
    (random, dense) = quality.measure(arguments).rows
    assert list(random) == list(dense) == ["network", "start", "accuracy %", "method", "20%", "10%"]


def test_an_interrupted_job_goes_on_where_it_stopped(arguments, monkeypatch) -> None:
    real, done = quality._run, []

    def interrupted(*key, **settings):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(key)
        return real(*key, **settings)

    monkeypatch.setattr(quality, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quality.measure(arguments)
    left = []
    monkeypatch.setattr(quality, "_run", lambda *key, **s: left.append(key) or real(*key, **s))
    result = quality.measure(arguments)
    assert len(done) == 3 and len(left) == 12 - 3 and not set(done) & set(left)
    assert quality.measure(arguments).rows == result.rows and len(left) == 9
    monkeypatch.setattr(quality, "FOLDER", quality.FOLDER / "fresh")
    assert quality.measure(arguments).rows == result.rows  # and to the same numbers


def test_the_committed_picture_can_be_drawn_again(tmp_path: Path) -> None:
    script = ROOT / "bench" / "_quality_plot.py"
    subprocess.run([sys.executable, script, tmp_path / "again.svg"], check=True)
    again = (tmp_path / "again.svg").read_text(encoding="utf-8")
    titles = re.compile(">((?:resnet8|vit), [^<]*)</text>")
    committed = (ROOT / "docs" / "quality.svg").read_text(encoding="utf-8")
    assert titles.findall(again) == titles.findall(committed) and len(titles.findall(again)) == 7


def test_a_longer_job_is_a_result_of_its_own(arguments, monkeypatch) -> None:
    epochs = []
    monkeypatch.setattr(
        quality, "train_and_test", lambda *a, **settings: epochs.append(settings["epochs"])
    )
    arguments.longer, arguments.methods, arguments.seeds = 4, ["random"], 1
    result = quality.measure(arguments)
    assert result.subject == "digits-4-times-longer"
    assert sorted(set(epochs)) == [4 * 1, 4 * 3]
    assert "12 epochs from 0.1 (init), 4 epochs from 0.05 (pretrained)" in result.settings["tiny"]


def test_renewed_statistics_are_those_of_the_pruned_network() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)).eval()
    model[1].running_mean.fill_(3.0)  # what it has seen before counts no more
    model[1].num_batches_tracked.fill_(5)
    images = torch.randn(256, 1, 4, 4)
    labels = torch.zeros(256, dtype=torch.int64)
    renewed = quality._renewed(model, torch.utils.data.TensorDataset(images, labels))
    halves = model[0](images).detach().view(2, 128, 2, 16)  # batches of 128
    mean, variance = halves.mean((0, 1, 3)), halves.transpose(1, 2).flatten(2).var(2).mean(0)
    assert torch.allclose(renewed[1].running_mean, mean, atol=1e-5)
    assert torch.allclose(renewed[1].running_var, variance, rtol=1e-4)
    assert torch.equal(model[1].running_mean, torch.full((2,), 3.0)) and not renewed.training


def test_runs_that_keep_other_than_asked_are_named() -> None:
    cells = Cells(Path("nowhere"), "a")
    cells._found = {
        ("vit", "init", "official", seed): {
            "at": {"0.2": {"kept": 0.2}, "0.1": {"kept": 0.0 if seed else 0.1}}
        }
        for seed in (0, 1)
    }
    cells._found["vit", "init", "px", 0] = {"at": {"0.1": {"why": "no path. Ask for more"}}}
    notes = quality._notes(list(cells._found), cells)
    assert "official, vit, init: at 10% keeps 0% (seed 1)." in notes
    assert "px, vit, init: at 10% fails (no path) (seed 0)." in notes
    assert sum("vit, init" in note for note in notes) == 2


def test_an_error_of_one_seed_alone_is_no_error() -> None:
    found = quality._spread([{"0.1": {"trained": 80.0}}], 0.1, "trained")
    assert found == {"mean": 80.0, "error": 0.0, "each": [80.0]}
    both = [{"0.1": {"trained": 80.0}}, {"0.1": {"why": "no path"}}]
    assert quality._spread(both, 0.1, "trained")["each"] == [80.0, None]
    assert quality._spread(both[1:], 0.1, "trained") == "fails"
    assert math.isclose(
        quality._spread([{"0.1": {"trained": v}} for v in (70.0, 80.0, 90.0)], 0.1, "trained")[
            "error"
        ],
        10 / math.sqrt(3),
    )
