"""What every job measures with: paired times, and the peak memory of a job in its own process."""

from __future__ import annotations

import ctypes
import ctypes.util
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

Work = Callable[[], object]
Result = TypeVar("Result")


def paired(
    candidates: Mapping[str, Work], *, repeats: int, title: str = "", warmup: int = 1
) -> dict[str, list[float]]:
    """Time the candidates in turn, so that a change of the machine's load meets all of them.

    The order is reversed every other repeat: none always follows the same neighbour.

    Args:
        candidates: what to time, by name.
        repeats: how often each is timed.
        title: what the progress bar says.
        warmup: how often each runs before the clock counts.

    Returns:
        Seconds of each candidate, one entry per repeat; entries of one repeat belong together.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for work in candidates.values():
        for _ in range(warmup):
            work()
    for repeat in tqdm(range(repeats), desc=title, leave=False):
        names = list(candidates) if repeat % 2 == 0 else list(candidates)[::-1]
        for name in names:
            start = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles of measured values."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Return the spread of the ratios of two candidates' times, repeat by repeat."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def paired_apart(
    prepare: Callable[..., Work], candidates: Sequence[str], *, repeats: int, **arguments: object
) -> dict[str, list[float]]:
    """As `paired`, in a fresh process, where nothing else has mapped memory before.

    Args:
        prepare: a function of a module; takes `candidate`, `small` and the arguments and returns
            the job.
        candidates: names of what to time.
        repeats: how often each is timed.
        arguments: what `prepare` is called with.
    """
    return apart(_paired_here, prepare, candidates, repeats, arguments, torch.get_num_threads())


def _paired_here(
    prepare: Callable[..., Work],
    candidates: Sequence[str],
    repeats: int,
    arguments: Mapping[str, object],
    threads: int,
) -> dict[str, list[float]]:
    torch.set_num_threads(threads)
    jobs = {name: prepare(candidate=name, small=False, **arguments) for name in candidates}
    return paired(jobs, repeats=repeats, title=candidates[-1])


def peak_memory(prepare: Callable[..., Work], **arguments: object) -> float:
    """Return the MiB that a job takes at its peak on top of what it starts with.

    A fresh process imports what it needs, calls `prepare` for the job, runs the job of a small
    `prepare(small=True)` once so that libraries and code are loaded, and then watches the peak of
    its resident memory (VmHWM) while the job runs.

    Args:
        prepare: a function of a module; takes `small` and the arguments and returns the job.
        arguments: what `prepare` is called with.
    """
    return apart(_peak_memory_here, prepare, arguments, torch.get_num_threads())


def apart(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of a module in a fresh process, which then ends in order."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(function, arguments)
        pool.close()
        pool.join()
    return result


def _peak_memory_here(
    prepare: Callable[..., Work], arguments: Mapping[str, object], threads: int
) -> float:
    torch.set_num_threads(threads)
    prepare(small=True, **arguments)()
    job = prepare(small=False, **arguments)
    _return_free_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = _status_mib("VmRSS")
    job()
    return _status_mib("VmHWM") - before


def _return_free_memory() -> None:
    """Hand freed memory back to the system, so that the job cannot hide in it."""
    name = ctypes.util.find_library("c")
    if name is not None:
        ctypes.CDLL(name).malloc_trim(0)


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory needs Linux")
