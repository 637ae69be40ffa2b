"""The job that measures vision transformers builds every network that it names, and tells the
passes apart."""

from __future__ import annotations

import argparse

import pytest
import torch
from libraries import library

from bench import transformers
from bench._harness import paired


def test_a_row_holds_every_candidate(monkeypatch, tmp_path) -> None:
    library("timm")

    def here(prepare, candidates, *, repeats, **arguments):
        jobs = {name: prepare(candidate=name, small=True, **arguments) for name in candidates}
        return paired(jobs, repeats=repeats)

    monkeypatch.setattr(transformers, "paired_apart", here)
    monkeypatch.setattr(transformers, "peak_memory", lambda prepare, **job: 1.0)
    monkeypatch.setattr(transformers, "FOLDER", tmp_path)
    options = argparse.Namespace(
        names=["timm:test_vit"], images=2, repeats=1, minutes=5, record="some"
    )
    result = transformers.measure(options)
    (row,) = result.rows
    assert result.subject == "some"
    assert (row["network"], row["image"]) == ("timm:test_vit", 160)
    for criterion in transformers.CRITERIA:
        assert row[f"{criterion} × forward"]["median"] > 0
        assert row[f"{criterion} MiB"] == 1


def test_what_is_finished_is_kept(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(transformers, "FOLDER", tmp_path)
    measured = []

    def row(name: str, images: int, repeats: int) -> dict[str, object]:
        measured.append(name)
        if name == "c":
            raise KeyboardInterrupt
        return {"network": name, "images": images}

    monkeypatch.setattr(transformers, "row", row)
    names = ["a", "b", "c"]
    options = argparse.Namespace(names=names, images=2, repeats=1, minutes=5, record="some")
    with pytest.raises(KeyboardInterrupt):
        transformers.measure(options)
    options.minutes = 0
    assert [row["network"] for row in transformers.measure(options).rows] == ["a", "b"]
    assert measured == names
    options.images = 4
    with pytest.raises(SystemExit, match="no network was begun"):
        transformers.measure(options)


@pytest.mark.parametrize("name", transformers.NETWORKS)
def test_every_network_can_be_built(name) -> None:
    library(name.partition(":")[0])
    with torch.device("meta"):
        model, size = transformers.network.__wrapped__(name)
    assert sum(map(torch.numel, model.parameters())) > 1e6 and size in (224, 256)
