"""The paper's tables run on folders in the real formats, and say what they miss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_data import write_cifar, write_cifar100, write_image_folder, write_tiny_imagenet
from libraries import library
from torch import nn

from bench import _augment, paper
from bench._paper_tables import DENSITIES, TABLES

WRITERS = {
    "cifar10-resnet20": (write_cifar, "cifar-10-batches-py"),
    "cifar100-vgg16": (write_cifar100, "cifar-100-python"),
    "tiny-imagenet-resnet18": (write_tiny_imagenet, "tiny-imagenet-200"),
    "imagenet-resnet50": (write_image_folder, "."),
}


def tiny(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, num_classes),
    )  # fmt: skip


@pytest.fixture
def build(monkeypatch, tmp_path: Path) -> Path:
    """Where finished trainings are kept; the networks are tiny ones."""
    folder = tmp_path / "build"
    monkeypatch.setattr(paper, "FOLDER", folder)
    for name, table in TABLES.items():
        recipe = replace(table.recipe, batch_size=4)
        monkeypatch.setitem(TABLES, name, replace(table, network=tiny, recipe=recipe))
    return folder


def run(table: str, data: Path, *more: str):
    arguments = ["--table", table, "--data", str(data), "--quick", "--workers", "0"]
    return paper.main([*arguments, "--device", "cpu", *more])


@pytest.mark.parametrize("table", WRITERS)
def test_every_table_runs_on_a_folder_in_its_format(table: str, build: Path, tmp_path) -> None:
    write, inner = WRITERS[table]
    write(tmp_path / "data" / inner)
    result = run(table, tmp_path / "data", "--methods", "px", "random", "dense")
    saved = json.loads((build / f"paper-{table}-quick-cpu.json").read_text(encoding="utf-8"))
    assert saved["rows"] == result.rows and result.command.startswith("python bench/paper.py")
    assert [row["method"] for row in result.rows] == ["px", "random", "dense"]
    assert [name for name in result.rows[0] if name != "method"] == ["16.78%"]
    for row in result.rows:
        assert 0 <= row["16.78%"]["mean"] <= 100 and len(row["16.78%"]["each"]) == 1
    assert result.settings["epochs"] == 1 and result.settings["rounds"] == 2


def test_finished_trainings_are_kept_and_others_added(build, tmp_path, monkeypatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    seen = []
    real = paper.train_and_test

    def watched(model, *sets, **settings):
        seen.append(settings)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(model, *sets, **settings)

    monkeypatch.setattr(paper, "train_and_test", watched)
    with pytest.raises(KeyboardInterrupt):
        run("cifar10-resnet20", tmp_path, "--methods", "px", "dense")
    run("cifar10-resnet20", tmp_path, "--methods", "px", "dense")
    assert len(seen) == 3
    run("cifar10-resnet20", tmp_path, "--methods", "px", "dense", "magnitude")
    assert len(seen) == 4
    assert seen[0]["milestones"] == (80, 120) and seen[0]["lr"] == 0.1


def test_the_pruned_network_is_the_one_that_is_trained(build, tmp_path, monkeypatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    kept = []

    def watched(model, train_set, test_set, **settings):
        kept.append(float(sum(m.weight_mask.sum() for m in model if hasattr(m, "weight_mask"))))
        assert len(train_set) == 20 and len(test_set) == 4
        return 50.0

    monkeypatch.setattr(paper, "train_and_test", watched)
    run("cifar10-resnet20", tmp_path, "--methods", "px", "--densities", "0.5")
    assert kept == [round(0.5 * (4 * 3 * 25 + 16 * 10))]


def test_a_failing_method_is_a_note(build, tmp_path, monkeypatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    monkeypatch.setattr(paper, "masks_at", lambda *a: ["no path is left"])
    result = run("cifar10-resnet20", tmp_path, "--methods", "px")
    assert result.rows == [{"method": "px", "16.78%": "fails"}]
    assert "px at 16.78%, seed 0, fails: no path is left" in result.notes


def test_missing_data_are_named(build, tmp_path) -> None:
    for table in WRITERS:
        with pytest.raises(SystemExit) as caught:
            run(table, tmp_path / "nowhere")
        assert "nowhere" in str(caught.value) and str(caught.value).startswith("DataError")
        assert f"DIR holds {TABLES[table].layout}" in str(caught.value)


def test_the_list_names_tables_data_and_recipes(capsys) -> None:
    assert paper.main(["--list"]) is None
    said = capsys.readouterr().out
    for name, table in TABLES.items():
        assert name in said and table.layout in said
    assert "0.018" in said and "a tenth after epochs 80, 120, weight decay 0.0001" in said


def test_a_table_needs_its_data(capsys) -> None:
    with pytest.raises(SystemExit):
        paper.main(["--table", "cifar10-resnet20"])
    assert "--list says what there is" in capsys.readouterr().err


def test_the_lowest_density_is_that_of_the_paper() -> None:
    assert DENSITIES[-1] == 0.018 and list(DENSITIES) == sorted(DENSITIES, reverse=True)


@pytest.mark.parametrize(
    ("table", "size", "millions"),
    [
        ("cifar10-resnet20", 32, 0.27), ("cifar100-vgg16", 32, 14.8),
        ("tiny-imagenet-resnet18", 64, 11.3), ("imagenet-resnet50", 64, 25.6),
    ],
)  # fmt: skip
def test_networks_are_those_of_the_paper(table: str, size: int, millions: float) -> None:
    if table == "imagenet-resnet50":
        library("torchvision")
    with torch.device("meta"):
        network = TABLES[table].network(TABLES[table].classes).eval()
        logits = network(torch.empty(2, 3, size, size))
    assert logits.shape == (2, TABLES[table].classes)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1e6 * millions, rel=0.02)


# ---- changes of training images


def test_cifar_crops_stay_within_the_padding_and_flip() -> None:
    image = torch.arange(1, 1 + 32 * 32).remainder(251).to(torch.uint8).view(1, 32, 32) + 1
    image = image.repeat(3, 1, 1)
    padded = torch.nn.functional.pad(image, (4,) * 4)
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    known = {crop.numpy().tobytes(): (number, 0) for number, crop in enumerate(crops)}
    known |= {crop.flip(2).numpy().tobytes(): (number, 1) for number, crop in enumerate(crops)}
    torch.manual_seed(0)
    seen = {known[_augment.cifar(image).contiguous().numpy().tobytes()] for _ in range(300)}
    assert len({number for number, _ in seen}) > 60 and {flip for _, flip in seen} == {0, 1}


@pytest.mark.parametrize("change", [_augment.tiny_imagenet, _augment.imagenet])
def test_resized_crops_have_their_size_and_repeat_with_the_seed(change) -> None:
    image = torch.randint(256, (3, 80, 100), dtype=torch.uint8)
    torch.manual_seed(1)
    first = [change(image) for _ in range(8)]
    torch.manual_seed(1)
    assert all(torch.equal(change(image), one) for one in first)
    assert not torch.equal(first[0], first[1])
    side = 64 if change is _augment.tiny_imagenet else 224
    assert all(x.shape == (3, side, side) and x.dtype == torch.uint8 for x in first)


def test_a_crop_covers_the_range_of_areas() -> None:
    ramp = torch.linspace(0, 255, 200).round().to(torch.uint8).expand(3, 100, 200)
    torch.manual_seed(0)
    widths = []
    for _ in range(200):
        row = _augment.resized_crop(ramp, 32, scale=(0.1, 0.5), ratio=(1.0, 1.0))[0, 0].float()
        widths.append(abs(float(row[-1] - row[0])) / 255 * 200 * 32 / 31)
    # Squares of 10 to 50% of 100 x 200 pixels are 45 to 100 pixels wide.
    assert 43 < min(widths) < 55 and 90 < max(widths) < 103


def test_a_shape_that_fits_nowhere_gives_the_middle() -> None:
    image = torch.zeros(3, 10, 90, dtype=torch.uint8)
    image[:, :, 40:50] = 200
    found = _augment.resized_crop(image, 8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert (found == 200).all()


def test_colours_turn_around_the_grey_axis() -> None:
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    assert torch.allclose(_augment._hue(red, 1 / 3).flatten(), torch.tensor([0, 1.0, 0]), atol=1e-6)
    grey = torch.full((3, 1, 1), 0.4)
    assert torch.allclose(_augment._hue(grey, 0.2), grey, atol=1e-6)


@pytest.mark.parametrize("option", ["--help", "--list"])
def test_it_says_which_densities_are_inferred(option: str, capsys) -> None:
    assert pytest.approx(0.8**18, rel=1e-3) == DENSITIES[-1]
    try:
        paper.main([option])
    except SystemExit as end:
        assert end.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "are inferred" in said and "0.018" in said
