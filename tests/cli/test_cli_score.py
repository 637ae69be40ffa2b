"""pxfast score."""

from __future__ import annotations

import torch
from command_line import LAYERS, batches, build, run

import pxfast


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
