"""The chart of README.md: time and memory of a score, pxfast beside the official algorithm.

Drawn as SVG by hand from the records of `bench/run.py score`, so that the same records give the
same file; `bench/tables.py` writes it and checks that it is not stale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bench._result import Result

NETWORKS = {  # a record's subject, in the order of the chart
    "resnet20": "ResNet-20, 32², 100 images",
    "mobilenet_v2-224": "MobileNetV2, 224², 16 images",
    "vgg16-224": "VGG-16, 224², 8 images",
    "resnet50-224": "ResNet-50, 224², 16 images",
    "vit_base_patch16_224-224": "ViT-B/16, 224², 8 images",
}
PASSES = {  # criterion and density of a row
    ("px", 1.0): "px, all weights",
    ("px", 0.5): "px, 50% of the weights",
    ("px", 0.02): "px, 2%",
    ("px-joint", 1.0): "px-joint, all weights",
}
LABELS, PANEL, GAP, BAR, STEP, HEAD = 190, 260, 70, 7, 22, 24
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 } .value { font-size: 10px; fill: #57606a }
.ours { fill: #0969da } .official { fill: #afb8c1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .value { fill: #9198a1 }
  .ours { fill: #4493f8 } .official { fill: #656c76 }
}"""


@dataclass(frozen=True)
class Panel:
    """One quantity: its title, the columns it is in, where its bars begin and their scale."""

    title: str
    ours: str
    official: str
    left: int
    most: float

    def bar(self, value: float, y: float, kind: str) -> str:
        """Draw one bar and its number."""
        width = PANEL * value / self.most
        return (
            f'<rect class="{kind}" x="{self.left}" y="{y:g}" width="{width:.1f}" height="{BAR}"/>'
            f'<text class="value" x="{self.left + width + 4:.1f}" y="{y + BAR:g}">'
            f"{_two_digits(value)}</text>"
        )


def draw(results: Sequence[Result]) -> str:
    """Return the chart as SVG of those networks whose records are among `results`."""
    records = {result.subject: result.rows for result in results if result.job == "score"}
    rows = [
        (subject, name, row)
        for subject in NETWORKS
        for (criterion, density), name in PASSES.items()
        for row in records.get(subject, ())
        if (row["criterion"], row["density"]) == (criterion, density)
    ]
    panels = [
        _panel(
            "time in plain forwards",
            "pxfast × forward beside official",
            "official × forward",
            0,
            rows,
        ),
        _panel("peak memory, MiB", "pxfast MiB", "official MiB", 1, rows),
    ]
    parts, y, before = [_legend()], HEAD, None
    for subject, name, row in rows:
        if subject != before:
            y += HEAD
            parts.append(f'<text class="head" x="0" y="{y}">{escape(NETWORKS[subject])}</text>')
            if before is None:
                parts += [
                    f'<text class="head" x="{panel.left}" y="{y}">{panel.title}</text>'
                    for panel in panels
                ]
            y, before = y + 10, subject
        parts.append(f'<text x="12" y="{y + 12}">{escape(name)}</text>')
        for panel in panels:
            parts.append(panel.bar(_median(row[panel.ours]), y + 1, "ours"))
            parts.append(panel.bar(_median(row[panel.official]), y + 2 + BAR, "official"))
        y += STEP
    width = LABELS + 2 * PANEL + 2 * GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 8}" width="{width}" '
        f'role="img" aria-label="Time and memory of one scoring pass">\n<style>{STYLE}\n</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(
    title: str,
    ours: str,
    official: str,
    place: int,
    rows: Sequence[tuple[str, str, dict[str, object]]],
) -> Panel:
    values = [_median(row[column]) for _, _, row in rows for column in (ours, official)]
    return Panel(title, ours, official, LABELS + place * (PANEL + GAP), max(values, default=1.0))


def _legend() -> str:
    return (
        f'<rect class="ours" x="0" y="4" width="{BAR}" height="{BAR}"/>'
        '<text x="12" y="12">pxfast</text>'
        f'<rect class="official" x="70" y="4" width="{BAR}" height="{BAR}"/>'
        '<text x="82" y="12">the official algorithm</text>'
    )


def _median(cell: object) -> float:
    """The number of a cell, whether it has quartiles or not."""
    return float(str(cell["median"] if isinstance(cell, Mapping) else cell))


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
