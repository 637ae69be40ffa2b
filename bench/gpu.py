"""Build, test and measure on a GPU, offline, in at most 8 minutes: `python bench/gpu.py`.

Builds the kernels for this GPU, runs the tests of all ops on it (a required device fails, it does
not skip), runs compute-sanitizer on a few of them where it is installed, measures the two ceilings
(copy, matrix product) and every op and whole models against them, against plain torch and against
torch.compile of the whole score in plain torch; prints a short table and writes
bench/results/gpu-<name>-cuda.json, anew after every step that measures. A step that fails or
reaches its limit is ended with all that it started, is reported, and the next one runs.
`--dry-run` says what would run; it needs no GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder last: its select.py is not the standard library's.
sys.path.sort(key=lambda path: Path(path).resolve() == Path(__file__).resolve().parent)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from bench._machine import ROOT, machine
from bench._result import RESULTS, Result, machine_line, markdown

LIMIT = 480  # seconds, of all steps together
H200 = {"copy": 4.3e12, "float32": 67e12, "bfloat16": 790e12}  # bytes and flops a second, for plans


@dataclass(frozen=True)
class Step:
    """A command with a time limit.

    Attributes:
        name: in the report.
        command: its arguments.
        seconds: that it may take.
        environment: what is set for it.
        needs: a program without which it is left out.
    """

    name: str
    command: Sequence[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    needs: str | None = None

    def run(self, seconds: float) -> str:
        """What became of it, in words; its output goes to the terminal."""
        if self.needs is not None and shutil.which(self.needs) is None:
            return f"left out: {self.needs} is not installed"
        begin, limit = time.monotonic(), min(self.seconds, seconds)
        environment = {**os.environ, **self.environment}
        started = subprocess.Popen(self.command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            status = started.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped at its limit of {limit:.0f} s"
        finally:  # compilers and the like, too; also when it is interrupted itself
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                started.wait(5)  # a driver may hold a process longer
        took = f"{time.monotonic() - begin:.0f} s"
        return f"passed, {took}" if status == 0 else f"failed ({status}), {took}"


def plan(architecture: str, out: Path) -> list[Step]:
    """The steps for a GPU of this architecture ("9.0a"); rows go to `out`."""
    python = sys.executable
    tests = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
    ]  # a file may want what is not installed
    memcheck = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"]
    small = ["tests/ops/test_squared_linear.py", "tests/ops/test_squared_attention.py"]
    required = {"PXFAST_REQUIRE": "cuda"}
    measure = [python, "-m", "bench._gpu_measure"]
    return [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 100,
             {"PXFAST_CUDA": "ON", "PXFAST_CUDA_ARCHS": architecture}),
        Step("tests", [*tests, "tests/ops", "-k", "cuda"], 80, required),
        Step("ceilings", [*measure, "ceilings", str(out)], 20),
        Step("ops", [*measure, "ops", str(out)], 90),
        Step("models", [*measure, "models", str(out)], 80),
        Step("compiled", [*measure, "compiled", str(out)], 70),
        Step("compute-sanitizer",
             [*memcheck, *tests, *small, "-k", "cuda and (without_dx or nan_stays)"], 40, required,
             needs="compute-sanitizer"),
    ]  # fmt: skip


def problem() -> str | None:
    """Why nothing can be measured here, and what to do; None where it can."""
    if torch.cuda.is_available():
        return None
    return (
        f"bench/gpu.py measures on an NVIDIA GPU, and torch {torch.__version__} sees none "
        f"(torch.version.cuda is {torch.version.cuda}). Run it on a machine with a GPU, its "
        "driver, nvcc and a CUDA build of torch; --dry-run shows here what it would do."
    )


def architecture() -> str:
    """Of the first GPU, as PXFAST_CUDA_ARCHS takes it."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}{'a' if major in (9, 10) else ''}"


def written(out: Path) -> list[dict[str, object]]:
    """The rows that are whole: a step that was stopped may leave half a line."""
    rows = []
    for line in out.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def result_of(rows: list[dict[str, object]], outcomes: dict[str, str]) -> Result:
    """A result whose rows all have the same keys."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    named = [{key: row.get(key, "") for key in keys} for row in rows]
    return Result(
        subject=torch.cuda.get_device_name().replace(" ", "-").lower(),
        settings=dict(outcomes),
        rows=named,
        notes=["× torch is plain torch's time in pxfast's. The floor is the larger of bytes by the "
               "measured copy and flops by the measured matrix product of that type."],
        job="gpu",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the plan, or show it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    arguments = parser.parse_args(argv)
    if arguments.dry_run:
        show(plan("9.0a", Path("rows.jsonl")))
        return 0
    if (reason := problem()) is not None:
        print(reason, file=sys.stderr)
        return 1
    facts = machine() | {"device": "cuda", "gpu": torch.cuda.get_device_name()}
    outcomes: dict[str, str] = {}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        out.touch()
        result, command = None, shlex.join(["python", "bench/gpu.py", *(argv or [])])
        for step in plan(architecture(), out):
            left = LIMIT - (time.monotonic() - begin)
            outcomes[step.name] = step.run(left) if left > 1 else "no time was left"
            print(f"{step.name}: {outcomes[step.name]}", flush=True)
            if rows := written(out):
                result = result_of(rows, outcomes)
                result.machine, result.command = facts, command
                path = result.save(arguments.results)
    if result is None:
        print("nothing was measured; see the steps above", file=sys.stderr)
        return 1
    print(machine_line(facts), markdown(result.rows), sep="\n")
    print(f"written to {path}")
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


def show(steps: list[Step]) -> None:
    """Print every step with its limit, and what is timed."""
    from bench._gpu_cases import cases
    from bench._gpu_measure import MODELS

    for step in steps:
        settings = [f"{name}={value}" for name, value in step.environment.items()]
        print(f"{step.name}, at most {step.seconds} s:", *settings, shlex.join(step.command))
    print(f"together at most {sum(step.seconds for step in steps)} s; timed are")
    for case in cases():
        floor = 1e3 * case.floor(H200["copy"], H200)
        print(f"  {case.what}: {case.size}; {floor:.3g} ms at least on an H200")
    for name in MODELS:
        print(f"  {name}: forward, px and px-joint (also in plain torch), official")
    print(f"  {MODELS[0]}: px and px-joint in plain torch, one graph, compiled by torch")


if __name__ == "__main__":
    sys.exit(main())
