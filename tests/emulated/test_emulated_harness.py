"""The harness lets correct kernels pass and reports every mistake that it is there to report."""

from __future__ import annotations

import re

import pytest
from emulated.build import CSRC, Change, Program, Unavailable

ORDERS = ("forward", "reverse", "random")
CHECKS = ("plain", "address", "thread")
PROGRAMS = {check: Program("harness_cases.cpp", check) for check in CHECKS}

# The mistake, the check that reports it, and what is reported.
MISTAKES = {
    "barrier_in_branch": ("plain", r"ERROR .*__syncthreads"),
    "two_barriers": ("plain", r"ERROR .*__syncthreads while other threads wait in the one at"),
    "narrow_mask": ("plain", r"ERROR .*lane \d+ is not in its own mask 0xffff"),
    "reads_other_half": (
        "plain",
        r"ERROR .*__shfl_sync reads lane 20, which is not in mask 0xffff",
    ),
    "lanes_apart": ("plain", r"ERROR .* while other lanes of its mask are in"),
    "lane_waits_elsewhere": ("plain", r"ERROR .*(not reached by all|have returned)"),
    "reads_unwritten": ("plain", r"WRONG what was not written was read"),
    "missing_barrier": ("plain", r"WRONG what was not written was read"),
    "copy_not_waited_for": ("plain", r"WRONG what was not written was read"),
    "copy_without_barrier": ("plain", r"WRONG what was not written was read"),
    "copy_over_what_is_read": ("thread", r"data race"),
    "misaligned_copy": ("plain", r"ERROR cp.async.* is not a multiple of the copy's 16 bytes"),
    "mma_in_branch": ("plain", r"ERROR .*(not reached by all|have returned)"),
    "no_room_in_the_launch": ("plain", r"ERROR .*256 bytes of dynamic .* in a launch of 0"),
    "too_much_shared": ("plain", r"ERROR .*more than 227 KiB of shared memory"),
    "another_stream": ("plain", r"ERROR a launch on another stream than the caller's"),
    "too_many_threads": ("plain", r"ERROR invalid launch of 1 x 1025"),
    "too_many_blocks": ("plain", r"ERROR a CUDA launch of 2147483648 blocks exceeds the limit"),
    "shared_overrun": ("address", r"heap-buffer-overflow|index 64 out of bounds"),
    "global_overrun": ("address", r"heap-buffer-overflow"),
    "misaligned_vector": ("address", r"misaligned address"),
    "race_in_block": ("thread", r"data race"),
    "race_between_blocks": ("thread", r"data race"),
    "atomic_and_plain": ("thread", r"data race"),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=CHECKS)
@pytest.mark.parametrize("order", ORDERS)
def test_correct_kernels_pass(order: str, program: Program) -> None:
    ran = program.run("correct", order)
    assert (ran.returncode, ran.stdout) == (0, "PASSED\n")


@pytest.mark.parametrize(
    ("case", "program", "sign"),
    [
        pytest.param(case, PROGRAMS[check], sign, id=case)
        for case, (check, sign) in MISTAKES.items()
    ],
)
def test_mistakes_are_reported(case: str, program: Program, sign: str) -> None:
    for order in ORDERS if program.check == "plain" else ("random",):
        ran = program.run(case, order)
        assert ran.returncode != 0
        assert re.search(sign, ran.stdout), f"{order}: {ran.stdout[:4000]}"


def test_reports_name_the_source_line() -> None:
    reported = PROGRAMS["plain"].run("narrow_mask").stdout
    found = re.search(r"(\S+harness_cases\.cpp):(\d+): .*\[block 0, thread 16\]", reported)
    assert found, reported
    with open(found[1], encoding="utf-8") as source:
        assert "__shfl_xor_sync(0x0000ffffu" in source.read().splitlines()[int(found[2]) - 1]


def test_an_unknown_order_is_an_error() -> None:
    assert (
        "order must be forward, reverse or random" in PROGRAMS["plain"].run("correct", "up").stdout
    )


def test_a_change_must_match_exactly_once(tmp_path) -> None:
    (tmp_path / "dtype.h").write_text((CSRC / "dtype.h").read_text())
    with pytest.raises(ValueError, match="holds 0 times, not once"):
        Change("dtype.h", "no such text", "").apply(tmp_path)
    Change("dtype.h", "enum class Dtype", "enum class Type").apply(tmp_path)
    assert "enum class Type" in (tmp_path / "dtype.h").read_text()


BROKEN = Program("harness_cases.cpp", change=Change("cuda/device.cuh", "#pragma once", "not C++"))


@pytest.mark.parametrize("program", [BROKEN], ids=["broken"])
def test_a_program_that_does_not_compile_says_why(program: Program) -> None:
    with pytest.raises(RuntimeError, match="error: "):
        program.path()


def test_without_a_compiler_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from emulated import build

    monkeypatch.setenv("CXX", "no-such-compiler")
    build.compiler.cache_clear()
    try:
        with pytest.raises(Unavailable, match="needs g\\+\\+ 11 or newer"):
            build.compiler()
    finally:
        build.compiler.cache_clear()
