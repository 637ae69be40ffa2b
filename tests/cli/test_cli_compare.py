"""pxfast compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import build, run

import pxfast
from pxfast.cli import compare as command
from pxfast.cli import main
from pxfast.compare import Comparison, Entry, InterruptedComparison
from pxfast.data import digits


def comparison() -> Comparison:
    masks = pxfast.Masks({"a.weight": torch.eye(3), "b.weight": torch.ones(2)})
    return Comparison((Entry("px", 100, 1.25, masks, 1.0),), 0.5, "px", 11)


def test_the_command_compares_trains_and_draws(model, capsys):
    status = run(
        *("compare", model, "--data", "digits", "--density", 0.3, "--rounds", 2),
        *("--criteria", "px", "snip", "random", "--train", 5, "--plot", "p.png"),
    )
    assert status == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["px", "snip", "random", "dense"]
    assert "Each trained once" in lines[6] and lines[7] == "picture: p.png"
    assert float(lines[5].split()[-1].rstrip("%")) > 40  # chance is 10
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_nothing_but_json(model, capsys):
    arguments = ("compare", model, "--data", "digits", "--density", 0.3, "--rounds", 1)
    assert run(*arguments, "--json", "--plot", "p.png") == 0
    facts = json.loads(capsys.readouterr().out)
    names = [entry["criterion"] for entry in facts["criteria"]]
    assert names == ["px", "px-joint", "snip", "synflow", "magnitude", "random"]
    samples = pxfast.balanced_subset(digits(), 10, 0)
    data = [(torch.stack([x for x, _ in samples]), torch.tensor([int(y) for _, y in samples]))]
    masks = pxfast.prune(build(model), data, density=0.3, rounds=1, criterion="snip")
    densities = {layer.name: layer.density for layer in masks.layers}
    assert facts["criteria"][2]["layer_densities"] == densities


def test_every_option_reaches_the_function(model, monkeypatch):
    calls = []

    def find(built, data, **options):
        calls.append((data, options))
        return comparison()

    monkeypatch.setattr(command, "find_comparison", find)
    status = run(
        *("compare", model, "--data", "digits", "--sparsity", 0.7, "--criteria", "grasp", "px"),
        *("--scope", "layer", "--batchnorm", "data", "--include", "0.*", "--exclude", "6.*"),
        *("--per-class", 2, "--batch-size", 15, "--max-memory", "2G"),
    )
    assert status == 0
    ((data, options),) = calls
    assert [len(x) for x, _ in data] == [15, 5]
    assert options == {
        **{"density": None, "sparsity": 0.7, "criteria": ["grasp", "px"], "rounds": None},
        **{"scope": "layer", "batchnorm": "data", "include": ["0.*"], "exclude": ["6.*"]},
        **{"train": None, "max_memory": 2 * 2**30},
    }


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_ctrl_c_prints_the_rows_that_are_finished(model, capsys, monkeypatch, form):
    def find_comparison(*_, **__):
        raise InterruptedComparison(comparison())

    monkeypatch.setattr(command, "find_comparison", find_comparison)
    options = ("--data", "digits", "--density", "0.1", "--plot", "p.png")
    assert main(["compare", model, *options, *form]) == 130
    captured = capsys.readouterr()
    assert (comparison().to_json() if form else comparison().table()) in captured.out
    assert Path("p.png").exists()
    assert captured.err == "pxfast compare: interrupted\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", 2], "density must be in (0, 1], got 2.0"),
        (["--density", 0.1, "--train", 0], "--train must be at least 1 epoch, got 0"),
        (["--density", 0.1, "--plot", "p.gif"], "--plot: expected a file ending in .png"),
        (["--density", 0.1, "--rounds", 0], "rounds must be at least 1, got 0"),
        (["--density", 0.1, "--data", "random:3x8x8"], "could not be scored on batch 1"),
    ],
)
def test_the_command_says_what_is_wrong(model, capsys, options, message):
    assert run("compare", model, "--data", "digits", *options) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert captured.err.startswith("pxfast compare: ") and "Traceback" not in captured.err


def test_an_unknown_criterion_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["compare", "m:f", "--data", "digits", "--density", "0.1", "--criteria", "snap"])
    assert caught.value.code == 2
    assert "invalid choice: 'snap' (choose from px, px-joint, snip" in (
        error := capsys.readouterr().err
    )
    assert error.endswith("did you mean snip?\n")


def test_prune_takes_every_criterion(model, capsys):
    arguments = ("prune", model, "--data", "digits", "--density", 0.3, "--rounds", 1)
    assert run(*arguments, "--criterion", "grasp") == 0
    assert "made by: grasp" in capsys.readouterr().out
    assert pxfast.Masks.load("masks.safetensors").provenance["criterion"] == "grasp"
