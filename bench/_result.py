"""A result: the rows that a job measured, how it is written as JSON and shown as a table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Result:
    """What a job returns.

    Attributes:
        subject: what was measured (a model, a data set); part of the file's name.
        settings: everything that was chosen, so that a reader can repeat the run.
        rows: one dictionary per row of the table, all with the same keys; a measured spread is a
            dictionary with `median`, `low` and `high`, a mean one with `mean` and `error`.
        notes: what a reader must know to read the numbers rightly.
        job, command, machine: filled in by `bench/run.py`.
    """

    subject: str
    settings: dict[str, object]
    rows: list[dict[str, object]]
    notes: list[str] = field(default_factory=list)
    job: str = ""
    command: str = ""
    machine: dict[str, object] = field(default_factory=dict)

    def save(self, folder: Path = RESULTS) -> Path:
        """Write the result to `<job>-<subject>-<device>.json` and return the path."""
        path = folder / f"{self.job}-{self.subject}-{self.machine['device']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path


def load(path: Path) -> Result:
    """Read a result that `Result.save` wrote."""
    return Result(**json.loads(path.read_text(encoding="utf-8")))


def load_all(folder: Path = RESULTS) -> list[Result]:
    """Read every result in a folder, in the order of their file names."""
    return [load(path) for path in sorted(folder.glob("*.json"))]


def mean_with_error(each: Sequence[float | None]) -> object:
    """Return mean, standard error of the mean and the values; "fails" or "" where there is none.

    Args:
        each: a value per seed, None where the method failed.
    """
    values = [value for value in each if value is not None]
    if not values:
        return "fails" if each else ""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "error": error, "each": list(each)}


def machine_line(facts: Mapping[str, object]) -> str:
    """Return the machine line of a result, in words."""
    uncommitted = " with uncommitted changes" if facts["uncommitted"] else ""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"torch {facts['torch']}, pxfast {facts['pxfast']} at {str(facts['commit'])[:10]}"
        f"{uncommitted}, {facts['date']}"
    )


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a Markdown table."""
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(_cell(row[key]) for key in header) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, Mapping) and "mean" in value:
        return f"{value['mean']:.1f} ± {value['error']:.1f}"
    if isinstance(value, Mapping):
        return f"{_number(value['median'])} ({_number(value['low'])}–{_number(value['high'])})"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return _number(value)


def _number(value: float) -> str:
    """Return three significant digits, in powers of ten only where they help."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.1e}"
