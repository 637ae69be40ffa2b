"""The web page: whole, self-contained, escaped, and of any number of layers."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from pxfast import report
from pxfast.report.layers import COLLAPSED, CUT_OFF, EMPTY_BRANCH, Report, Row

VOID = {"meta", "line", "rect", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.text if name == tag]


def made(layers: int, name: str = "blocks.{}.weight", **provenance: object) -> Report:
    rows = tuple(
        Row(
            name.format(k), (10, 10), 100, 0 if k == 1 else 100 >> min(k, 6),
            flops=1000 * (k + 1), path_mass=1 / (k + 1),
            mark={1: COLLAPSED, 2: EMPTY_BRANCH, 3: CUT_OFF}.get(k, ""),
        )
        for k in range(layers)
    )  # fmt: skip
    return Report(rows, {"criterion": "px", **provenance}, flops=10**6)


@pytest.mark.parametrize("layers", [1, 5, 300])
def test_every_layer_is_in_the_table_and_in_every_chart(layers):
    page = Page(report.page(made(layers)))
    names = [f"blocks.{k}.weight" for k in range(layers)]
    assert [text for text in page.texts("th") if text.startswith("blocks")] == names
    assert len(page.all("svg")) == 3
    titles = page.texts("title")[1:]
    assert [title.split(": ")[0].split(". ", 1)[1] for title in titles] == names * 3
    numbers = [text for text in page.texts("span") if text.isdecimal()]
    assert len(numbers) <= 3 * 6 + 3 * 4


def test_bars_stand_where_their_values_are():
    page = Page(report.page(made(1)))  # of one layer: density 1, flops 1000, mass 1
    heights = [float(str(bar["height"])) for bar in page.all("rect")]
    assert heights == [100.0] * 4  # of the flops also what was there before
    half = Report((Row("a", (4,), 4, 2), Row("b", (4,), 4, 4)), {})
    heights = [float(str(bar["height"])) for bar in Page(report.page(half)).all("rect")]
    assert heights == [50.0, 100.0]


def test_marks_are_coloured_and_explained():
    page = Page(report.page(made(5)))
    cells = [cell for cell in page.all("td") if cell.get("class") in ("bad", "legal")]
    assert [cell["class"] for cell in cells] == ["bad", "legal", "legal"]
    assert page.texts("td").count(COLLAPSED) == page.texts("dt").count(COLLAPSED) == 1
    plain = Page(report.page(Report((Row("a", (4,), 4, 4),), {})))
    assert not [cell for cell in plain.all("td") if cell.get("class") == "bad"]
    assert "legend" not in [each.get("class") for each in plain.all("dl")]


def test_nothing_comes_from_elsewhere():
    text = report.page(made(30))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=|href=", text)
    (policy,) = [
        meta["content"]
        for meta in Page(text).all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert str(policy).startswith("default-src 'none'")


@pytest.mark.parametrize("name", ["<b>{}</b>", '"><script>alert({})</script>', "a&b'{}"])
def test_names_are_text_and_nothing_else(name):
    page = Page(report.page(made(2, name, note="<i>x</i>"), title="<u>title</u>"))
    assert not {tag for tag, _ in page.tags} & {"b", "i", "u"} - {"b"}
    assert len(page.all("script")) == 1
    assert len(page.all("b")) == 3  # of the tiles
    joined = "".join(text for _, text in page.text)
    assert name.format(0) in joined and "<i>x</i>" in joined
    assert page.texts("h1") == ["<u>title</u>"]


def test_it_is_made_for_light_dark_and_small_screens():
    text = report.page(made(2))
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport" content="width=device-width' in text
    assert "max-width: 40rem" in text


def test_cells_carry_the_values_that_they_are_sorted_by():
    cells = [cell for cell in Page(report.page(made(3))).all("td") if "data-value" in cell]
    first = [float(str(cell["data-value"])) for cell in cells[:7]]
    assert first == [1, 100, 100, 1.0, 1000, 1000, 1.0]


def test_it_is_written_whole(tmp_path):
    path = tmp_path / "report.html"
    report.write_page(made(2), path, title="Größe")
    assert path.read_text(encoding="utf-8") == report.page(made(2), title="Größe")
