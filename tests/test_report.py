from __future__ import annotations

import csv
import io
import json

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pxfast import Masks, report


def masks(layers: int = 3, density: float | None = None) -> Masks:
    """Layers of 100 weights with falling densities; the last is empty."""
    flat = torch.arange(100).view(10, 10)
    mapping = {
        f"blocks.{k}.linear.weight": flat < (0 if k == layers - 1 else 100 >> min(k, 6))
        for k in range(layers)
    }
    if density is not None:
        mapping = {name: flat < 100 * density for name in mapping}
    return Masks(mapping, {"criterion": "px", "samples": 100})


def test_json_says_all():
    content = json.loads(report.to_json(masks()))
    assert (content["kept"], content["weights"], content["density"]) == (150, 300, 0.5)
    assert content["layers"][1] == {
        "name": "blocks.1.linear.weight",
        "shape": [10, 10],
        "weights": 100,
        "kept": 50,
        "density": 0.5,
    }
    assert content["provenance"] == {"criterion": "px", "samples": 100}


def test_csv_has_a_line_per_layer():
    rows = list(csv.DictReader(io.StringIO(report.to_csv(masks()))))
    assert [row["kept"] for row in rows] == ["100", "50", "0"]
    assert rows[0] == {
        "name": "blocks.0.linear.weight",
        "shape": "10x10",
        "weights": "100",
        "kept": "100",
        "density": "1.0",
    }


def drawn(monkeypatch, tmp_path, what: Masks, **options):
    """The axes of the picture that `plot` saves."""
    saved = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *a, **k: (saved.append(figure), original(figure, *a, **k)),
    )
    report.plot(what, tmp_path / "picture.png", **options)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
    (figure,) = saved
    return figure.axes


@pytest.mark.parametrize("layers", [1, 3, 60, 61, 300])
def test_every_layer_is_drawn_at_its_density(monkeypatch, tmp_path, layers):
    what = masks(layers)
    axes = drawn(monkeypatch, tmp_path, what)[0]
    points = axes.collections[1].get_offsets().data
    densities = points[:, 0 if layers <= 60 else 1]
    assert len(densities) == layers
    for value, layer in zip(densities, what.layers, strict=True):
        if layer.kept:
            assert value == pytest.approx(layer.density, rel=1e-12)


def test_rows_are_named_and_counted(monkeypatch, tmp_path):
    rows, counts = drawn(monkeypatch, tmp_path, masks(3))
    assert [label.get_text() for label in rows.get_yticklabels()] == [
        f"blocks.{k}.linear.weight" for k in range(3)
    ]
    assert [label.get_text() for label in counts.get_yticklabels()] == [
        "100 of 100",
        "50 of 100",
        "empty",
    ]
    low, high = rows.get_ylim()
    assert low > high  # the first layer is on top
    assert counts.get_ylim() == (low, high)


def test_columns_name_few_enough_layers_to_read(monkeypatch, tmp_path):
    axes = drawn(monkeypatch, tmp_path, masks(300))[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert 20 <= len(names) <= 40
    positions = axes.get_xticks()
    assert names == [f"blocks.{int(k)}.linear.weight" for k in positions]


def test_the_axis_is_logarithmic_only_where_densities_differ_tenfold(monkeypatch, tmp_path):
    assert drawn(monkeypatch, tmp_path, masks(7))[0].get_xscale() == "log"
    assert drawn(monkeypatch, tmp_path, masks(3))[0].get_xscale() == "linear"
    assert drawn(monkeypatch, tmp_path, masks(4, density=0.02))[0].get_xscale() == "linear"
    assert drawn(monkeypatch, tmp_path, masks(300))[0].get_yscale() == "log"


def test_the_title_tells_the_density_and_the_empty_layers(monkeypatch, tmp_path):
    axes = drawn(monkeypatch, tmp_path, masks(3))[0]
    title = axes.get_title(loc="left")
    assert title == "50% of 300 weights kept by px (grey line), 1 of 3 layers empty"
    axes = drawn(monkeypatch, tmp_path, masks(3), title="mine")[0]
    assert axes.get_title(loc="left") == "mine"


def test_masks_without_a_weight_can_be_drawn(tmp_path):
    report.plot(masks(2, density=0.0), tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 0


def test_the_global_state_of_matplotlib_is_left_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), matplotlib.get_backend()
    report.plot(masks(), tmp_path / "picture.svg")
    assert (plt.get_fignums(), matplotlib.get_backend()) == before
