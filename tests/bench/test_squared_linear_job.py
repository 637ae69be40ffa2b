"""The benchmark of squared_linear: both candidates compute the same, and its rows."""

from __future__ import annotations

from pathlib import Path

import torch

from bench import run
from bench.squared_linear import Layer


def test_both_candidates_compute_the_same() -> None:
    torch.manual_seed(0)
    weight, x, dy = torch.randn(8, 20), torch.rand(3, 20), torch.rand(3, 8)
    ours, eager = (Layer(weight, torch.full_like(weight, 7)) for _ in range(2))
    torch.testing.assert_close(ours.forward(x, dy), eager.eager_forward(x, dy))
    torch.testing.assert_close(ours.backward(x, dy), eager.eager_backward(x, dy))
    torch.testing.assert_close(ours.saliency, eager.saliency)


def test_every_pass_has_a_row(tmp_path: Path) -> None:
    sizes = ["--outputs", "8", "--inputs", "20", "--rows", "1", "9", "--repeats", "2"]
    result = run.main(["squared-linear", *sizes, "--weights", "2", "--results", str(tmp_path)])
    passes = ("forward", "backward", "both")
    assert [(r["T"], r["pass"]) for r in result.rows] == [(T, p) for T in (1, 9) for p in passes]
    for row in result.rows:
        times = {"forward": 1, "backward": 2, "both": 3}[str(row["pass"])]
        median = row["pxfast ms"]["median"]  # type: ignore[index]
        assert abs(row["GB/s"] / (times * 4 * 8 * 20 * 1e-6 / median) - 1) < 1e-9  # type: ignore[operator]
