"""The picture of a report: every layer at its value, and names that can be read."""

from __future__ import annotations

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pxfast import Masks, report
from pxfast.report.figures import panels, short_names
from pxfast.report.layers import COLLAPSED, EMPTY_BRANCH, Report, Row


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


def full(layers: int) -> Report:
    """A report that knows everything, with an empty layer of each kind."""
    marks = {1: COLLAPSED, 2: EMPTY_BRANCH}
    rows = (
        Row(
            f"blocks.{k}.weight", (10, 10), 100, 0 if k in marks else 50,
            flops=1000 * (k + 1), path_mass=0.0 if k in marks else 1 / (k + 1),
            mark=marks.get(k, ""),
        )
        for k in range(layers)
    )  # fmt: skip
    return Report(tuple(rows), {}, flops=10**7)


def drawn(monkeypatch, tmp_path, what: Masks | Report, **options):
    """The figure that `plot` saves."""
    saved = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *a, **k: (saved.append(figure), original(figure, *a, **k)),
    )
    built = report.build(what) if isinstance(what, Masks) else what
    report.plot(built, tmp_path / "picture.png", **options)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200 and max(picture.size) < 3000
    (figure,) = saved
    return figure


def points(axes, along: int) -> dict[int, float]:
    """The values of the dots and crosses by the place of their layer."""
    found = {}
    for dots in axes.collections[-2:]:
        for offset in dots.get_offsets().data:
            found[round(offset[1 - along])] = float(offset[along])
    return found


@pytest.mark.parametrize("layers", [1, 3, 60, 61, 300])
def test_every_layer_is_drawn_at_its_density(monkeypatch, tmp_path, layers):
    what = masks(layers)
    axes = drawn(monkeypatch, tmp_path, what).axes[0]
    densities = points(axes, 0 if layers <= 60 else 1)
    assert len(densities) == layers
    for place, layer in enumerate(what.layers):
        if layer.kept:
            assert densities[place] == pytest.approx(layer.density, rel=1e-12)


@pytest.mark.parametrize("layers", [4, 100])
def test_every_quantity_has_its_panel(monkeypatch, tmp_path, layers):
    what = full(layers)
    axes = drawn(monkeypatch, tmp_path, what).axes
    along = 0 if layers <= 60 else 1
    for panel, one in zip(panels(what), axes, strict=False):
        shown = points(one, along)
        for place, row in enumerate(what.rows):
            if panel.value(row):
                assert shown[place] == pytest.approx(panel.value(row), rel=1e-12)
    labels = [one.get_xlabel() if along == 0 else one.get_ylabel() for one in axes[:3]]
    assert labels == ["weights kept", "FLOPs (grey: before pruning)", "path mass"]


def test_empty_layers_are_crosses_in_the_colour_of_their_mark(monkeypatch, tmp_path):
    axes = drawn(monkeypatch, tmp_path, full(4)).axes[0]
    dots, crosses = axes.collections[-2:]
    assert [round(y) for _, y in crosses.get_offsets().data] == [1, 2]
    colours = [tuple(colour) for colour in crosses.get_edgecolors()]
    assert len({*colours, tuple(dots.get_facecolors()[0])}) == 3


def test_rows_are_named_and_counted(monkeypatch, tmp_path):
    rows, counts = drawn(monkeypatch, tmp_path, masks(3)).axes
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
    axes = drawn(monkeypatch, tmp_path, masks(300)).axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert 20 <= len(names) <= 40
    positions = axes.get_xticks()
    assert names == [f"blocks.{int(k)}.linear.weight" for k in positions]


def named(*names: str) -> list[str]:
    return short_names([Row(name, (1,), 1, 1) for name in names])


def test_long_names_lose_what_all_share(monkeypatch, tmp_path):
    form = "backbone.encoder.stages.{}.blocks.{}.attention.projection.output.weight"
    names = [form.format(k // 30, k % 30) for k in range(300)]
    assert named(*names)[31] == "…1.blocks.1…"
    assert len(set(named(*names))) == 300
    assert named("stem.weight", "head.weight") == ["stem.weight", "head.weight"]
    assert named("x" * 50 + ".a.w", "y.a.w") == ["x" * 19 + "…" + "x" * 19 + "…", "y…"]
    what = Masks({name: torch.ones(2, 2) for name in names})
    labels = drawn(monkeypatch, tmp_path, what).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == named(*names)[::8]


def test_long_names_lose_their_middle():
    name = "backbone.encoder.stages.3.blocks.17.attention.projection.output.weight"
    assert named(name) == [name[:19] + "…" + name[-20:]]
    assert named("a" * 40) == ["a" * 40]


def test_the_axis_is_logarithmic_only_where_densities_differ_tenfold(monkeypatch, tmp_path):
    def scale(what: Masks) -> str:
        axes = drawn(monkeypatch, tmp_path, what).axes[0]
        return axes.get_xscale() if len(what) <= 60 else axes.get_yscale()

    assert scale(masks(7)) == "log"
    assert scale(masks(3)) == "linear"
    assert scale(masks(4, density=0.02)) == "linear"
    assert scale(masks(300)) == "log"


def test_the_line_of_all_layers_is_inside_the_axis(monkeypatch, tmp_path):
    what = Masks({"a": torch.arange(100) < 100, "b": torch.arange(10**6) < 0})
    axes = drawn(monkeypatch, tmp_path, what).axes[0]
    low, high = axes.get_xlim()
    assert low < what.density < high


def test_the_title_tells_the_density_and_the_empty_layers(monkeypatch, tmp_path):
    figure = drawn(monkeypatch, tmp_path, masks(3))
    told = "50% of 300 weights kept by px, 1 of 3 layers empty (grey line: all layers; × is none)"
    assert figure.get_suptitle() == told
    assert drawn(monkeypatch, tmp_path, masks(3), title="mine").get_suptitle() == "mine"


def test_masks_without_a_weight_can_be_drawn(tmp_path):
    report.plot(report.build(masks(2, density=0.0)), tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 0


def test_the_global_state_of_matplotlib_is_left_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), matplotlib.get_backend()
    report.plot(report.build(masks()), tmp_path / "picture.svg")
    assert (plt.get_fignums(), matplotlib.get_backend()) == before
