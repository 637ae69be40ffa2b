"""The job that measures vision transformers builds every network that it names, and tells the
passes apart."""

from __future__ import annotations

import argparse

import pytest
import torch
from libraries import library

from bench import transformers
from bench._harness import paired


def test_a_row_holds_every_candidate(monkeypatch) -> None:
    library("timm")

    def here(prepare, candidates, *, repeats, **arguments):
        jobs = {name: prepare(candidate=name, small=True, **arguments) for name in candidates}
        return paired(jobs, repeats=repeats)

    monkeypatch.setattr(transformers, "paired_apart", here)
    monkeypatch.setattr(transformers, "peak_memory", lambda prepare, **job: 1.0)
    options = argparse.Namespace(names=["timm:test_vit"], images=2, repeats=1)
    (row,) = transformers.measure(options).rows
    assert (row["network"], row["image"]) == ("timm:test_vit", 160)
    for criterion in transformers.CRITERIA:
        assert row[f"{criterion} × forward"]["median"] > 0
        assert row[f"{criterion} MiB"] == 1


@pytest.mark.parametrize("name", transformers.NETWORKS)
def test_every_network_can_be_built(name, monkeypatch) -> None:
    library(name.partition(":")[0])
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *shape: rand(*shape, device="meta"))
    with torch.device("meta"):
        model, batch = transformers.setting(name, 1)
    assert sum(map(torch.numel, model.parameters())) > 1e6 and batch.shape[:2] == (1, 3)
