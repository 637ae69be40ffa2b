"""The job dual-max-pool2d: it times the op against torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import dual_max_pool2d, run
from bench._result import load


def test_it_times_both_ways(tmp_path: Path) -> None:
    small = ["--shape", "1", "2", "8", "40", "--repeats", "1", "--results", str(tmp_path)]
    result = run.main(["dual-max-pool2d", *small])
    assert load(tmp_path / "dual-max-pool2d-1x2x8x40-cpu.json") == result
    assert float(str(result.rows[0]["GB/s"])) > 0


def test_both_ways_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[tuple[torch.Tensor, torch.Tensor]] = []

    def compared(works, **_):
        results.extend(work() for name, work in works.items() if name != "copy")
        return {name: [1.0] for name in works}

    monkeypatch.setattr(dual_max_pool2d, "paired", compared)
    arguments = ["dual-max-pool2d", "--shape", "1", "2", "8", "40"]
    dual_max_pool2d.measure(run.parser().parse_args(arguments))
    ours, torchs = results
    assert all(map(torch.equal, ours, torchs))
