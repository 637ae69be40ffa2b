"""Finished parts of a long job, kept in a file so that an interrupted job goes on where it stopped.

A part is used again if everything is the same that it depends on: the job's settings, the sources
of pxfast and of the job, and the version of torch. Commits that change none of these do not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from bench._machine import ROOT


def digest(bench_files: Iterable[str], settings: Mapping[str, object]) -> str:
    """Return a fingerprint of what the parts of a job depend on.

    Args:
        bench_files: names of the files of bench/ that take part in it.
        settings: what was chosen for all of its parts; anything that JSON holds.
    """
    package = (path for folder in ("pxfast", "csrc") for path in (ROOT / folder).rglob("*"))
    sources = [path for path in package if path.suffix in (".py", ".h", ".cpp")]
    sources += [ROOT / "bench" / name for name in bench_files]
    found = hashlib.sha256(json.dumps([torch.__version__, dict(settings)]).encode())
    for path in sorted(sources):
        found.update(str(path.relative_to(ROOT)).encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


class Cells:
    """Results by key, one line of a file each.

    Args:
        path: of the file, which is made with the first part.
        of: the `digest` that its lines must have to count.
    """

    def __init__(self, path: Path, of: str) -> None:
        self.path, self.of = path, of
        self._found: dict[tuple[object, ...], dict[str, object]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # a job was killed while it wrote
                    continue
                if entry["of"] == of:
                    self._found[tuple(entry["key"])] = entry["result"]

    def __contains__(self, key: tuple[object, ...]) -> bool:
        return key in self._found

    def __getitem__(self, key: tuple[object, ...]) -> dict[str, object]:
        return self._found[key]

    def keep(self, key: tuple[object, ...], result: dict[str, object]) -> None:
        """Add a part, and write it at once."""
        self._found[key] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"key": list(key), "of": self.of, "result": result}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
