"""Batches on their way to the device. What overlaps needs a GPU; its order is tested without."""

from __future__ import annotations

import pytest
import torch

from pxfast.batches import Batch, batches
from pxfast.errors import DataError
from pxfast.prefetch import on_device, one_ahead, pinned

CPU = torch.device("cpu")


def read(log, count=3):
    for i in range(count):
        log.append(f"read {i}")
        yield Batch((torch.full((2,), float(i)),), {"mask": torch.ones(2)})


def test_every_item_is_begun_before_the_one_before_it_is_handed_out():
    log = []
    for item in one_ahead(range(3), lambda i: log.append(f"begin {i}") or i):
        log.append(f"use {item}")
    assert log == ["begin 0", "begin 1", "use 0", "begin 2", "use 1", "use 2"]
    assert list(one_ahead([], str)) == []
    assert list(one_ahead([7], str)) == ["7"]


def test_an_error_of_the_data_passes():
    def broken():
        yield 1
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        list(one_ahead(broken(), str))


def test_nothing_is_read_ahead_on_the_cpu():
    log = []
    for batch in on_device(read(log), CPU):
        log.append(f"use {int(batch.args[0][0])}")
    assert log == ["read 0", "use 0", "read 1", "use 1", "read 2", "use 2"]


def test_batches_on_the_cpu_are_not_copied():
    given = list(batches([torch.randn(2, 3), (torch.randn(2, 3), torch.zeros(2))]))
    for mine, theirs in zip(on_device(given, CPU), given, strict=True):
        assert mine.args[0] is theirs.args[0]


def test_batches_arrive_whole_and_in_order(device):
    log = []
    arrived = list(on_device(read(log, 5), device))
    assert [int(batch.args[0][0]) for batch in arrived] == list(range(5))
    for batch in arrived:
        assert batch.args[0].device.type == batch.kwargs["mask"].device.type == device.type
        assert torch.equal(batch.kwargs["mask"].cpu(), torch.ones(2))


def test_pinned_memory(device):
    if device.type == "cuda":
        assert pinned(Batch((torch.ones(3),), {})).args[0].is_pinned()
    on_it = Batch((torch.ones(3, device=device),), {"n": 3})
    if device.type != "cpu":
        assert pinned(on_it).args[0] is on_it.args[0] and pinned(on_it).kwargs == {"n": 3}
