"""Checkpoints of a pruning run: what they hold, refuse and survive."""

from __future__ import annotations

import errno
import os
import warnings

import pytest
import torch

from pxfast.errors import FileFormatError
from pxfast.rng import RngState
from pxfast.selection import Masks
from pxfast.selection.checkpoint import Checkpoint, CheckpointFile

RUN = {"model": "aa", "data": "bb", "density": 0.1, "schedule": [0.5, 0.1], "include": None}


def checkpoint(**changes) -> Checkpoint:
    values = {
        "round": 3, "masks": {"z": torch.rand(3, 5) < 0.5, "a": torch.rand(9) < 0.5},
        "run": dict(RUN), "provenance": {"seed": 5}, "rng": RngState.capture().to_json(),
    }  # fmt: skip
    return Checkpoint(**{**values, **changes})


def test_comes_back_whole(tmp_path):
    saved = checkpoint()
    saved.save(tmp_path / "c")
    first = torch.rand(3)
    loaded = Checkpoint.load(tmp_path / "c")
    assert (loaded.round, loaded.run, loaded.provenance) == (3, RUN, {"seed": 5})
    assert Masks(loaded.masks) == Masks(saved.masks)
    loaded.rng_state().restore()
    assert torch.equal(torch.rand(3), first)


def test_belongs_to_its_run(tmp_path):
    checkpoint().check("c", dict(RUN))


@pytest.mark.parametrize(("change", "message"), [
    ({"model": "cc"}, r"another model \(fingerprint aa, now cc\).*another checkpoint=.*delete"),
    ({"data": "cc"}, r"another data \(fingerprint bb, now cc\)"),
    ({"density": 0.2}, r"a run with density=0\.1, now it is 0\.2.*delete"),
    ({"schedule": "linear"}, r"schedule=\[0\.5, 0\.1\], now it is 'linear'"),
    ({"include": ["fc*"]}, r"include=None, now it is \['fc\*'\]"),
    ({"added": 1}, "added=None, now it is 1"),
])  # fmt: skip
def test_another_run_is_refused(change, message):
    with pytest.raises(FileFormatError, match=f"^c is the checkpoint of .*{message}"):
        checkpoint().check("c", {**RUN, **change})


def test_masks_are_no_checkpoint(tmp_path):
    Masks({"a": torch.ones(2)}).save(tmp_path / "m")
    with pytest.raises(
        FileFormatError, match=r"holds pxfast\.masks, expected a pxfast\.checkpoint"
    ):
        CheckpointFile(tmp_path / "m").load()


def test_no_file_is_no_checkpoint(tmp_path):
    assert CheckpointFile(tmp_path / "none").load() is None


def test_a_place_that_cannot_be_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        CheckpointFile(tmp_path / "nowhere" / "c")
    with pytest.raises(IsADirectoryError, match="is a folder: give a file's path"):
        CheckpointFile(tmp_path)


def test_a_full_disk_warns_once_until_it_works_again(tmp_path, monkeypatch):
    file = CheckpointFile(tmp_path / "c")
    file.save(checkpoint(round=1))
    replace = os.replace

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match=r"could not be written after round 2 .*No space left"):
        file.save(checkpoint(round=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file.save(checkpoint(round=3))
        monkeypatch.setattr(os, "replace", replace)
        assert file.load().round == 1
        file.save(checkpoint(round=4))
        assert file.load().round == 4
    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="after round 5"):
        file.save(checkpoint(round=5))
