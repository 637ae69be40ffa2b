"""The job sparse-dual-linear: a row for each layer, and both ways give the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import run, sparse_dual_linear
from bench._result import load
from pxfast import ops


@pytest.mark.parametrize("network", ["h", "joint"])
def test_every_layer_gets_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: str
) -> None:
    monkeypatch.setattr(sparse_dual_linear, "LAYERS", ((9, 70), (20, 5)))
    small = ["--images", "2", "1", "--tokens", "7", "--densities", "0.5", "--repeats", "1"]
    squared = ["--squared"] * (network == "joint")
    result = run.main(["sparse-dual-linear", *small, *squared, "--results", str(tmp_path)])
    assert load(tmp_path / f"sparse-dual-linear-{network}-cpu.json") == result
    assert [(row["layer"], row["images"]) for row in result.rows] == [
        ("9→70", 2),
        ("20→5", 2),
        ("9→70", 1),
        ("20→5", 1),
    ]
    for row in result.rows:
        assert list(row)[2:] == ["dense ms", "without", "50%"]


@pytest.mark.parametrize("squared", [False, True])
def test_both_ways_give_the_same(squared: bool) -> None:
    value, weight = torch.randn(2, 7, 9), torch.randn(70, 9)
    arguments = value, value.abs(), weight, torch.rand_like(weight) < 0.5
    op = ops.sparse_dual_linear(*arguments, squared=squared)
    torch.testing.assert_close(sparse_dual_linear._without(*arguments, squared), op)
