"""The job about a vision transformer of a billion weights, on a small one."""

from __future__ import annotations

import argparse

import torch
from libraries import library

from bench import giant


def test_every_step_is_done_and_weighed(monkeypatch) -> None:
    library("timm")
    threads = torch.get_num_threads()
    monkeypatch.setattr(giant, "apart", lambda function, *arguments: function(*arguments))
    options = argparse.Namespace(
        model="test_vit", images=1, density=0.5, rounds=2, steps=giant.STEPS
    )
    rows = {row["step"]: row for row in giant.measure(options).rows}
    assert list(rows) == list(giant.STEPS)
    assert torch.get_num_threads() == threads
    for row in rows.values():
        assert float(str(row["seconds"])) > 0
        assert float(str(row["peak GB"])) > 0.1
    assert abs(float(str(rows["prune"]["density"])) - 0.5) < 1e-4
    assert rows["px"]["density"] == 1
