"""The job sparse-dual-conv2d: a row for each layer, of the op alone and of its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import run, sparse_dual_conv2d
from bench._result import load
from bench.sparse_dual_conv2d import Layer


@pytest.mark.parametrize("end", [False, True])
def test_every_layer_gets_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: bool) -> None:
    layers = [Layer(3, 5, 6, 3, 2), Layer(4, 2, 5, 1)]
    monkeypatch.setattr(sparse_dual_conv2d, "LAYERS", {"resnet20": layers})
    small = ["--models", "resnet20", "--images", "2", "--densities", "0.5", "--repeats", "1"]
    result = run.main(["sparse-dual-conv2d", *small, *["--end"] * end, "--results", str(tmp_path)])
    assert load(tmp_path / f"sparse-dual-conv2d-h{'-end' * end}-cpu.json") == result
    assert [row["layer"] for row in result.rows] == ["3×3 3→5 @ 6 / 2", "1×1 4→2 @ 5"]
    for row in result.rows:
        assert list(row)[3:] == ["50%"] if end else ["dense ms", "50%"]
