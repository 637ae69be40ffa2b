"""pxfast score."""

from __future__ import annotations

import pytest
import torch
from command_line import LAYERS, batches, build, run

import pxfast
from pxfast.cli import score as command


def test_score_writes_the_scores_that_the_function_finds(model, capsys):
    assert run("score", model, "--data", "digits", "--output", "s.safetensors") == 0
    scores = pxfast.Scores.load("s.safetensors")
    expected = pxfast.score(build(model), batches())
    assert list(scores) == LAYERS
    assert all(torch.equal(scores[name], expected[name]) for name in LAYERS)
    output = capsys.readouterr().out
    for name, total in expected.totals().items():
        (line,) = [line for line in output.splitlines() if line.startswith(name)]
        assert line.split()[1:] == [str(expected[name].numel()), f"{total:.6g}"]
    assert "made by: px, 100 samples" in output


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("1024", 1024), ("2K", 2048), ("512M", 512 * 2**20), ("2G", 2**31), ("1t", 2**40)),
        *(("1.5G", 3 * 2**29), ("2GiB", 2**31), ("2 GB", 2**31), ("7b", 7)),
    ],
)
def test_memory_is_given_in_powers_of_1024(model, monkeypatch, text, size):
    options = {}
    monkeypatch.setattr(command, "find_scores", lambda *_, **given: options.update(given) or found)
    found = pxfast.Scores({"0.weight": torch.ones(1)})
    assert run("score", model, "--data", "digits", "--max-memory", text) == 0
    assert options["max_memory"] == size


@pytest.mark.parametrize("command", ["score", "prune", "compare"])
def test_a_limit_of_memory_reaches_the_scores(model, capsys, command):
    amount = () if command == "score" else ("--density", 0.5, "--rounds", 1)
    chosen = ("--criteria",) if command == "compare" else ("--criterion",)
    arguments = (command, model, "--data", "digits", *amount, *chosen, "px-joint", "--max-memory")
    assert run(*arguments, "64M") == 0
    assert run(*arguments, "4K") == 1
    assert "max_memory: one sample takes more than the given 4096 bytes" in capsys.readouterr().err


def test_other_criteria_refuse_a_limit_of_memory(model, capsys):
    assert run("score", model, "--data", "digits", "--criterion", "snip", "--max-memory", "1G") == 1
    assert "max_memory: options of pxfast's own criteria" in capsys.readouterr().err
