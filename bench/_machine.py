"""The machine line: where, when and with which code a number was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

import pxfast

ROOT = Path(__file__).resolve().parent.parent
MEASURED_CODE = ("pxfast", "csrc", "bench", "CMakeLists.txt", "setup.py")


def machine() -> dict[str, object]:
    """Return the facts that a number depends on besides the settings of its job."""
    return {
        "device": "cpu",
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pxfast": pxfast.__version__,
        "commit": _git("rev-parse", "HEAD").strip(),
        "uncommitted": _uncommitted(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _cores() -> int | None:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_model() -> str:
    """Return the processor's name as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _uncommitted() -> list[str]:
    """Return the measured files that differ from the commit (results themselves excepted)."""
    status = _git("status", "--porcelain", "--untracked-files=all", "--", *MEASURED_CODE)
    paths = [line[3:] for line in status.splitlines()]
    return [path for path in paths if not path.startswith("bench/results/")]


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout
