"""Compiles the CUDA source, together with the harness, into programs for this CPU.

A program is compiled once per content: its name in build/emulated/ holds the hash of every source
file, of the flags and of the compiler's version.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "emulated"

FLAGS = ["-std=c++20", "-g1", "-Wno-unknown-pragmas", "-fno-strict-aliasing"]
CHECKS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0",  # a launch that ends with an error abandons its fibers
    "TSAN_OPTIONS": "halt_on_error=1",
}


class Unavailable(RuntimeError):
    """This machine cannot run the harness; the message says why."""


@dataclass(frozen=True)
class Change:
    """A change of one file below csrc; `old` must occur there exactly once."""

    file: str
    old: str
    new: str

    def apply(self, csrc: Path) -> None:
        path = csrc / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.file} holds {text.count(self.old)} times, not once: {self.old!r}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True)
class Program:
    """A source file of this folder, what checks it, and what is changed in csrc."""

    source: str
    check: str = "plain"
    flags: tuple[str, ...] = ("-O0",)
    change: Change | None = None

    def start(self) -> Future[Path]:
        """Begins to compile, if no one has, and returns at once."""
        return _start(self)

    def path(self) -> Path:
        """Where the compiled program lies; waits for the compiler."""
        return self.start().result()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the program; stdout and stderr are together in its `stdout`."""
        command = [*_without_random_addresses(self.check), str(self.path()), *arguments]
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            env={**os.environ, **ENVIRONMENT},
        )


@functools.cache
def compiler() -> tuple[str, str]:
    """The path of g++ and its version."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        machine = f"{platform.system()} {platform.machine()}"
        raise Unavailable(f"the harness switches stacks on x86-64 Linux, and this is {machine}")
    path = shutil.which(os.environ.get("CXX", "g++"))
    version = (
        subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    )
    if path is None or "Free Software Foundation" not in version:
        raise Unavailable("the harness needs g++ 11 or newer; install it, or name it in CXX")
    return path, version


@functools.cache
def require(check: str) -> None:
    """Raises Unavailable where programs with this check cannot be compiled and run."""
    path, _ = compiler()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "trivial"
        command = [path, "-std=c++20", *CHECKS[check], "-x", "c++", "-", "-o", str(program)]
        built = subprocess.run(command, input="int main() {}", capture_output=True, text=True)
        if built.returncode != 0:
            raise Unavailable(f"g++ cannot link {' '.join(CHECKS[check])}: {built.stderr.strip()}")


@functools.cache
def _without_random_addresses(check: str) -> list[str]:
    """ThreadSanitizer of older compilers fails where the kernel randomises addresses widely."""
    command = ["setarch", platform.machine(), "-R"]
    if check != "thread" or shutil.which(command[0]) is None:
        return []
    works = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else []


@functools.cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count())


@functools.cache
def _start(program: Program) -> Future[Path]:
    return _executor().submit(_build, program)


def _build(program: Program) -> Path:
    require(program.check)
    with tempfile.TemporaryDirectory() as folder:
        csrc = CSRC
        if program.change is not None:
            csrc = Path(shutil.copytree(CSRC, Path(folder) / "csrc"))
            program.change.apply(csrc)
        compile_ = [compiler()[0], *FLAGS, *CHECKS[program.check], *program.flags]
        key = hashlib.sha256(repr((compiler(), compile_, program.source)).encode())
        for root in (csrc, HERE):
            for file in sorted(
                p for p in root.rglob("*") if p.suffix in (".h", ".cpp", ".cuh", ".cu")
            ):
                key.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
        target = CACHE / f"{Path(program.source).stem}-{program.check}-{key.hexdigest()[:20]}"
        command = [*compile_, f"-I{csrc}", f"-I{HERE / 'harness'}", str(HERE / program.source)]
        _compile_once(command, target)
    return target


def _compile_once(command: list[str], target: Path) -> None:
    """Two test processes may want the same program: one compiles it, the other waits."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        unfinished = target.with_name(f"{target.name}.unfinished")
        built = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
        if built.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{built.stderr[:8000]}")
        unfinished.rename(target)
