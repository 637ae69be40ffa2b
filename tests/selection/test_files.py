"""Files that are whole or refused: damage, truncation, other kinds, full disks."""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading

import pytest
import torch
from safetensors.torch import load, save

from pxfast.errors import FileFormatError
from pxfast.selection import Masks
from pxfast.selection.files import (
    pack_masks,
    read_tensors,
    unpack_masks,
    write_atomically,
    write_tensors,
)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "masks.safetensors"
    masks = Masks({"a": torch.rand(9, 3) < 0.5, "b": torch.rand(5) < 0.5}, {"criterion": "px"})
    masks.save(path)
    return path


def test_every_cut_of_a_file_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 50)):
        saved.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"masks\.safetensors"):
            Masks.load(saved)


def test_every_flipped_byte_is_refused(saved):
    whole = saved.read_bytes()
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 0x01
        saved.write_bytes(damaged)
        try:
            loaded = Masks.load(saved)
        except FileFormatError:
            continue
        # Only the version that wrote the file is outside the digest.
        saved.write_bytes(whole)
        assert loaded == Masks.load(saved), index
        assert loaded.provenance == {"criterion": "px"}, index


def test_appended_bytes_are_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(FileFormatError):
        Masks.load(saved)


@pytest.mark.parametrize("foreign", [
    b"",
    b"not a mask",
    pickle.dumps({"a": 1}),
    b"PK\x03\x04" + bytes(100),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, foreign):
    path = tmp_path / "other"
    path.write_bytes(foreign)
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        Masks.load(path)


def test_safetensors_of_another_program_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}):
        path.write_bytes(save({"a": torch.ones(2)}, metadata))
        with pytest.raises(FileFormatError, match=r"expected a pxfast\.masks file"):
            Masks.load(path)


def test_a_newer_format_is_refused(saved):
    metadata = _metadata(saved)
    metadata["format_version"] = "2"
    saved.write_bytes(save(load(saved.read_bytes()), metadata))
    with pytest.raises(FileFormatError, match="has format version 2, this pxfast reads version 1"):
        Masks.load(saved)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        Masks.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError):
        Masks({"a": torch.ones(2)}).save(tmp_path / "no" / "folder.safetensors")


def test_where_no_file_can_be_is_named(tmp_path):
    masks = Masks({"a": torch.ones(3)})
    with pytest.raises(
        FileNotFoundError, match=r"m\.st cannot be written: there is no folder .*no$"
    ):
        masks.save(tmp_path / "no" / "m.st")
    with pytest.raises(IsADirectoryError, match="is a folder: give a file's path"):
        masks.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_metadata_are_plain_strings(saved):
    metadata = _metadata(saved)
    assert metadata["format"] == "pxfast.masks"
    assert json.loads(metadata["content"])["provenance"] == {"criterion": "px"}
    assert metadata["pxfast"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failing_disk_leaves_the_old_file_and_no_other(saved, monkeypatch, call):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        Masks({"c": torch.ones(2)}).save(saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_an_interruption_leaves_the_old_file_and_no_other(saved, monkeypatch):
    before = saved.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(saved, b"new")
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_bytes_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, n=name, o=original: (calls.append(n), o(*args))[1]
        )
    write_atomically(tmp_path / "f", b"x")
    assert calls[:2] == ["fsync", "replace"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    write_atomically(link, b"x")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"x"


def test_a_reader_sees_one_version_of_a_file_that_is_replaced(tmp_path):
    path, versions = tmp_path / "m", [Masks({"w": torch.full((64,), n % 2)}) for n in range(2)]
    versions[0].save(path)
    done = threading.Event()

    def write():
        while not done.is_set():
            for version in versions:
                version.save(path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert Masks.load(path) in versions
    finally:
        done.set()
        writer.join()


def test_one_bit_a_weight():
    packed, shapes = pack_masks({"a": torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1]]).bool()})
    assert shapes == {"a": [3, 3]}
    assert packed["a"].dtype == torch.uint8
    assert packed["a"].tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (3, 0, 2), (5, 3, 3)])
def test_packing_reverses(shape):
    mask = torch.rand(shape) < 0.5
    packed, shapes = pack_masks({"m": mask})
    unpacked = unpack_masks("f", packed, shapes)["m"]
    assert unpacked.dtype == torch.bool
    assert torch.equal(unpacked, mask)


@pytest.mark.parametrize(("bits", "shapes", "message"), [
    (torch.zeros(1, dtype=torch.uint8), {"m": [9]}, r"needs 2 bytes of bits, got .* \[1\]"),
    (torch.zeros(2), {"m": [9]}, r"torch\.float32"),
    (torch.zeros(2, dtype=torch.uint8), {"other": [9]}, "list of shapes does not match"),
    (torch.zeros(2, dtype=torch.uint8), None, "list of shapes does not match"),
])  # fmt: skip
def test_bits_and_shapes_that_do_not_belong_together(bits, shapes, message):
    with pytest.raises(FileFormatError, match=message):
        unpack_masks("f", {"m": bits}, shapes)


def test_content_that_json_cannot_hold_writes_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_tensors(tmp_path / "f", "k", {"a": torch.ones(1)}, {"x": object()})
    assert os.listdir(tmp_path) == []


def test_content_and_tensors_come_back(tmp_path):
    tensors = {"b": torch.randn(3).bfloat16(), "a": torch.randn(2, 2)}
    write_tensors(tmp_path / "f", "k", tensors, {"x": [1, None, 0.1]})
    read, content = read_tensors(tmp_path / "f", "k")
    assert content == {"x": [1, None, 0.1]}
    assert set(read) == {"a", "b"}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def _metadata(path):
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    return json.loads(header[8 : 8 + length])["__metadata__"]
