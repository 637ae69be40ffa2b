"""The measuring itself: pairs, spreads, peak memory, the machine line."""

from __future__ import annotations

import time

import pytest
import torch

from bench._harness import Work, paired, peak_memory, ratio, spread
from bench._machine import machine
from bench._result import machine_line


def allocate(mebibytes: int, small: bool) -> Work:
    """A job that fills and frees memory; `small` as peak_memory asks for it."""
    count = 1 if small else mebibytes

    def work() -> None:
        torch.ones(count * 2**18)

    return work


def allocate_after_much(mebibytes: int, small: bool) -> Work:
    """The same, behind a preparation that needs more than the job."""
    torch.ones(2**18 if small else 200 * 2**18)
    return allocate(mebibytes, small)


@pytest.mark.parametrize("prepare", [allocate, allocate_after_much])
@pytest.mark.parametrize("mebibytes", [32, 128])
def test_peak_memory_is_what_the_job_allocates(prepare, mebibytes: int) -> None:
    peak = peak_memory(prepare, mebibytes=mebibytes)
    assert abs(peak - mebibytes) < 4  # the kernel counts pages in batches, a MiB or so at a time


def test_paired_runs_in_turn_and_reverses_every_other_repeat() -> None:
    calls: list[str] = []
    candidates = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = paired(candidates, repeats=3, warmup=1)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_paired_times_each_candidate() -> None:
    candidates = {"short": lambda: time.sleep(0.03), "long": lambda: time.sleep(0.3)}
    seconds = paired(candidates, repeats=3)
    assert 3 < ratio(seconds["long"], seconds["short"])["median"] < 12


def test_spread_is_median_and_quartiles() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_ratios_are_taken_repeat_by_repeat() -> None:
    assert ratio([1.0, 10.0, 6.0], [1.0, 5.0, 2.0])["median"] == 2.0  # of the medians: 3
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])


def test_machine_line_names_what_a_number_depends_on() -> None:
    facts = machine()
    line = machine_line(facts)
    for fact in ("cpu", "torch", "pxfast", "date"):
        assert str(facts[fact]) in line
    assert str(facts["commit"])[:10] in line
