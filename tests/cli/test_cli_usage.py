"""What all commands share: usage, help, errors, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import prune

from pxfast.cli import main, parser
from pxfast.cli import prune as command

ROOT = Path(__file__).resolve().parents[2]


def test_debug_shows_the_traceback(model, capsys):
    assert prune(model, "--density", 2, "--debug") == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("pxfast prune: density must be in (0, 1]")


def test_a_bug_is_not_hidden(model, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("a bug")

    monkeypatch.setattr(command, "find_masks", broken)
    with pytest.raises(AssertionError, match="a bug"):
        prune(model, "--density", 0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["prune"],
        ["prune", "m:f", "--data", "digits"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--sparsity", "0.9"],
        ["prune", "m:f", "--data", "digits", "--density", "2%"],
        ["prune", "m:f", "--data", "digits", "--pattern", "channels"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--pattern", "4:2"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--pattern", "diagonal"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--criterion", "unheard"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--max-memory", "2 mice"],
        ["score", "m:f", "--data", "digits", "--max-memory", "0"],
        ["report", "m.st", "--json", "--csv"],
        ["unheard"],
    ],
)
def test_wrong_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: pxfast" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "score", "prune", "compare", "report", "doctor"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"] if command else ["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    if command not in ("doctor",):
        assert "examples:\n  pxfast " in output
    if command in ("score", "prune", "compare"):
        assert "--max-memory SIZE" in output and "such as 2G" in " ".join(output.split())
    if command == "prune":
        for said in ("fraction of the weights to keep, in (0, 1]", "(default: 100)", "paper's"):
            assert said in output


def test_the_examples_of_the_help_parse(capsys):
    texts = [parser._TOP_EXAMPLES, *(command.EXAMPLES for command in parser.COMMANDS.values())]
    text = "\n".join(texts).replace("\\\n", "")
    lines = [line.split(">")[0].split() for line in text.splitlines() if " pxfast " in line]
    assert len(lines) == 17
    for line in lines:
        if line[-1] != "--help":
            assert parser.build_parser().parse_args(line[1:]).command == line[1]


def test_a_reader_that_stops_early_is_no_error(masks_file):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = f"{sys.executable} -m pxfast report {masks_file} --json | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
