"""The job masked-ones: it times what the engine would run, and both ways give the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import masked_ones, run
from bench._result import load


def test_every_layer_gets_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layers = (
        masked_ones.Layer(3, 64, 9, 3, 2),
        masked_ones.Layer(8, 8, 5, 3, 1, 8),
    )
    monkeypatch.setattr(masked_ones, "CONVOLUTIONS", layers)
    monkeypatch.setattr(masked_ones, "LINEAR", ((70, 40),))
    small = ["--rows", "1", "200", "--images", "2", "--repeats", "1", "--results", str(tmp_path)]
    result = run.main(["masked-ones", *small])
    assert load(tmp_path / "masked-ones-h-cpu.json") == result
    assert [(row["layer"], row["positions"]) for row in result.rows] == [
        ("linear 70×40", 1),
        ("linear 70×40", 200),
        ("3×3 3→64 @ 9 / 2", 2 * 5 * 5),
        ("3×3 8→8 @ 5, 8 groups", 2 * 5 * 5),
    ]
    for row in result.rows:
        assert float(str(row["Gterm/s"])) > 0
    chosen = {row["layer"]: row["chosen"] for row in result.rows}
    assert chosen["3×3 8→8 @ 5, 8 groups"] == "torch"


@pytest.mark.parametrize("T", [3, 200])
def test_the_ways_give_the_same(monkeypatch: pytest.MonkeyPatch, T: int) -> None:
    results: list[torch.Tensor] = []

    def compared(works, **_):
        results.extend(work() for work in works.values())
        return {name: [1.0] for name in works}

    monkeypatch.setattr(masked_ones, "paired", compared)
    monkeypatch.setattr(masked_ones, "MASKED_BYTES", 4 * 40 * 8)  # several cuts
    arguments = run.parser().parse_args(["masked-ones", "--images", "2"])
    masked_ones._linear(T, 70, 40, arguments)
    masked_ones._convolution(masked_ones.Layer(4, 64, 7, 3, 2, 2), arguments)
    assert len(results) == 6
    for first, *others in (results[:3], results[3:]):
        for other in others:
            torch.testing.assert_close(first, other)
