"""pxfast report."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from command_line import batches, build, fails, run

import pxfast
from pxfast import report

WITH_MODEL = ("--data", "digits", "--per-class", 2)


def test_report_prints_the_table(masks_file, capsys):
    assert run("report", masks_file, "--plot", "p.svg") == 0
    output = capsys.readouterr().out
    assert output.startswith(pxfast.Masks.load(masks_file).summary())
    assert "made by: px" in output
    assert "<svg" in Path("p.svg").read_text()


def test_report_with_a_model_says_what_the_library_says(model, masks_file, capsys):
    files = ("--html", "r.html", "--plot", "r.png")
    assert run("report", masks_file, "--model", model, *WITH_MODEL, *files) == 0
    captured = capsys.readouterr()
    found = report.build(pxfast.Masks.load(masks_file), build(model), batches(per_class=2))
    assert captured.out.startswith(report.table(found))
    for name, meaning in report.legend(found).items():
        assert f"\n{name}: {meaning}\n" in captured.out
    assert captured.out.endswith("picture: r.png\npage: r.html\n")
    assert captured.err == ""
    assert Path("r.html").read_text(encoding="utf-8") == report.page(found)
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")
    assert found.flops and found.has_path_mass


def test_report_takes_the_path_mass_from_scores(model, masks_file, capsys):
    assert run("score", model, "--data", "digits", "--output", "s.st") == 0
    capsys.readouterr()
    assert run("report", masks_file, "--scores", "s.st", "--json") == 0
    scores = pxfast.Scores.load("s.st")
    found = report.build(pxfast.Masks.load(masks_file), scores=scores)
    assert capsys.readouterr().out == report.to_json(found) + "\n"
    assert found.has_path_mass


def test_report_prints_nothing_but_json_or_csv(masks_file, capsys):
    masks = pxfast.Masks.load(masks_file)
    assert run("report", masks_file, "--json", "--plot", "p.png", "--html", "p.html") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == masks.kept
    assert run("report", masks_file, "--csv", "--plot", "p.png", "--html", "p.html") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(int(row["kept"]) for row in rows) == masks.kept


def test_report_of_masks_made_elsewhere(model, capsys):
    pxfast.Masks({"a.weight": torch.eye(3)}).save("own.safetensors")
    assert run("report", "own.safetensors") == 0
    assert "made by: unknown" in capsys.readouterr().out


def test_report_says_what_is_wrong_with_a_file(model, capsys, tmp_path):
    fails(capsys, "gone.st", "report", "gone.st")
    path = tmp_path / "foreign.st"
    path.write_bytes(b"no masks")
    fails(capsys, "not a whole safetensors file", "report", path)
    pxfast.Scores({"a": torch.ones(2)}).save(path)
    fails(capsys, "holds pxfast.scores, expected a pxfast.masks file", "report", path)


def fails_with_masks(capsys, message: str, *arguments: object) -> None:
    """Ends with status 1 and one line, and prints and writes nothing."""
    before = sorted(Path.cwd().iterdir())
    assert run("report", "masks.safetensors", *arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.splitlines()[-1].startswith("pxfast report: ")
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.usefixtures("masks_file")
def test_report_says_what_is_wrong_with_its_options(model, capsys):
    fails_with_masks(capsys, "--html: there is no folder no", "--html", "no/r.html")
    fails_with_masks(capsys, "--html: . is a folder", "--html", ".")
    fails_with_masks(capsys, "expected a file ending in .png", "--plot", "p.gif")
    fails_with_masks(capsys, "gone.st", "--scores", "gone.st")
    fails_with_masks(capsys, "holds pxfast.masks, expected", "--scores", "masks.safetensors")
    other = ("--model", model, "--model-arg", "width=9", *WITH_MODEL)
    fails_with_masks(capsys, "are the masks of another model", *other)
    wrong_data = ("--model", model, "--data", "random:3x8x8")
    fails_with_masks(capsys, "could not be scored on batch 1", *wrong_data)


@pytest.mark.parametrize("options", [("--model", "m:f"), ("--data", "digits")])
def test_model_and_data_go_together(options, capsys):
    with pytest.raises(SystemExit) as caught:
        run("report", "masks.safetensors", *options)
    assert caught.value.code == 2
    assert "--model and --data go together" in capsys.readouterr().err
