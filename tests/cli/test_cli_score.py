"""pxfast score and pxfast doctor."""

from __future__ import annotations

import torch
from command_line import LAYERS, batches, build, run

import pxfast
from pxfast.ops._declare import declared


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


def test_doctor_says_what_runs_each_operation(capsys):
    assert run("doctor") == 0
    output = capsys.readouterr().out
    assert f"pxfast {pxfast.__version__}" in output
    assert f"torch {torch.__version__}" in output
    for key, value in pxfast._native.describe().items():
        assert f"{key}: {value}" in output
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line}
    assert {"squared_linear", "gate", "write_masks"} <= set(declared)
    for name in declared:
        assert rows[name][0] in ("kernel", "reference")
    if pxfast._native.problem is None:
        assert rows["squared_linear"][0] == "kernel"
