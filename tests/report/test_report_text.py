"""Reports as table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch

from pxfast import Masks, report
from pxfast.report.layers import COLLAPSED, CUT_OFF, EMPTY_BRANCH, MARKS, Report, Row

FULL = Report(
    (
        Row("stem.weight", (10, 10), 100, 25, flops=4000, path_mass=1.0),
        Row('a,"b".weight', (4, 25), 100, 0, flops=2_000_000, path_mass=0.0, mark=EMPTY_BRANCH),
        Row("head.weight", (5, 2, 1, 1), 10, 10, flops=20, path_mass=2.5e-7, mark=CUT_OFF),
    ),
    {"criterion": "px", "samples": 100},
    flops=2_005_000,
)


def masks() -> Masks:
    flat = torch.arange(100).view(10, 10)
    return Masks({"first": flat < 100, "second": flat < 50, "last": flat < 0}, {"criterion": "px"})


def test_json_says_all():
    content = json.loads(report.to_json(FULL))
    totals = {key: content[key] for key in ("kept", "weights", "flops", "flops_kept")}
    assert totals == {"kept": 35, "weights": 210, "flops": 2_005_000, "flops_kept": 2000}
    assert content["density"] == pytest.approx(35 / 210)
    assert content["layers"][0] == {
        **{"name": "stem.weight", "shape": [10, 10], "weights": 100, "kept": 25, "density": 0.25},
        **{"flops": 4000, "flops_kept": 1000, "path_mass": 1.0, "mark": ""},
    }
    assert content["provenance"] == {"criterion": "px", "samples": 100}


def test_csv_and_json_hold_the_same():
    rows = list(csv.DictReader(io.StringIO(report.to_csv(FULL))))
    layers = json.loads(report.to_json(FULL))["layers"]
    for row, layer in zip(rows, layers, strict=True):
        assert list(row) == list(layer)
        assert row["shape"] == "x".join(map(str, layer.pop("shape")))
        assert (row["name"], row["mark"]) == (layer.pop("name"), layer.pop("mark"))
        assert {key: float(row[key]) for key in layer} == layer


def test_what_is_not_known_is_null_and_empty():
    found = report.build(masks())
    content = json.loads(report.to_json(found))
    assert content["flops"] is content["flops_kept"] is None
    assert {layer["path_mass"] for layer in content["layers"]} == {None}
    (row, *_) = csv.DictReader(io.StringIO(report.to_csv(found)))
    assert (row["flops"], row["flops_kept"], row["path_mass"]) == ("", "", "")
    assert row["density"] == "1.0"


def test_the_table_begins_as_the_summary_of_masks():
    assert report.table(report.build(masks())) == masks().summary()


def test_the_table_shows_what_is_known():
    head, _, stem, branch, last, _, total = report.table(FULL).splitlines()
    assert " ".join(head.split()) == (
        "weight shape weights kept density FLOPs FLOPs left path mass"
    )
    assert stem.split()[-6:] == ["100", "25", "25.000%", "4k", "1k", "100.000%"]
    assert branch.endswith("2M           0     0.000%  empty branch")
    assert last.endswith("20          20   2.5e-05%  cut off")
    assert total.split() == ["all", "3", "layers", "210", "35", "16.667%", "2M", "2k"]


def test_the_legend_explains_what_is_there_and_nothing_else():
    assert list(report.legend(FULL)) == ["FLOPs", "path mass", EMPTY_BRANCH, CUT_OFF]
    assert COLLAPSED not in report.legend(FULL)
    assert list(report.legend(report.build(masks()))) == ["empty"]
    for mark, meaning in report.legend(FULL).items():
        assert meaning and meaning == MARKS.get(mark, meaning)
