from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import pxfast
from pxfast.cli import commands, main
from pxfast.data import digits

ROOT = Path(__file__).resolve().parent.parent

SOURCE = """
from torch import nn

def net(width=12):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10),
    )
"""
LAYERS = ["0.weight", "3.weight", "6.weight"]


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    """The name of a small model; the test runs in an empty folder beside it."""
    path = tmp_path / "nets_of_a_user.py"
    path.write_text(SOURCE)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return f"{path}:net"


def build(model: str, seed: int = 0, **arguments) -> torch.nn.Module:
    torch.manual_seed(seed)
    return pxfast.loading.load_model(model, arguments)


def batches(per_class: int = 10, seed: int = 0) -> list[torch.Tensor]:
    subset = pxfast.balanced_subset(digits(), per_class, seed)
    return [torch.stack([image for image, _ in subset])]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def prune(model: str, *arguments: object) -> int:
    return run("prune", model, "--data", "digits", "--rounds", 3, *arguments)


# ---- prune


def test_prune_writes_the_masks_that_the_function_finds(model, capsys):
    assert prune(model, "--density", 0.2, "--plot", "densities.png") == 0
    masks = pxfast.Masks.load("masks.safetensors")
    expected = pxfast.prune(build(model), batches(), density=0.2, rounds=3)
    assert list(masks) == LAYERS
    assert all(torch.equal(masks[name], expected[name]) for name in LAYERS)
    assert Path("densities.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert masks.summary() in output
    assert "made by: px, exponential schedule, 3 rounds, global scope, 100 samples" in output
    assert "seed 0" in output


def test_every_option_of_prune_reaches_the_function(model, monkeypatch):
    calls = []

    def find_masks(built, data, **options):
        calls.append((built, data, options))
        return pxfast.Masks({"0.weight": torch.ones(2, 2)})

    monkeypatch.setattr(commands, "find_masks", find_masks)
    pxfast.Masks({"0.weight": torch.ones(9, 1, 3, 3)}).save("before.safetensors")
    status = run(
        *("prune", model, "--model-arg", "width=9", "--data", "digits", "--size", 10),
        *("--per-class", 2, "--batch-size", 15, "--seed", 7, "--sparsity", 0.75),
        *("--rounds", 5, "--schedule", "linear", "--scope", "layer", "--checkpoint", "run.ckpt"),
        *("--pattern", "channels", "--min-density", 0.05),
        *("--criterion", "px-joint", "--batchnorm", "data", "--masks", "before.safetensors"),
        *("--include", "0.*", "3.*", "--exclude", "6.*", "--exclude", "9.*"),
    )
    assert status == 0
    ((built, data, options),) = calls
    assert torch.equal(built[0].weight, build(model, seed=7, width=9)[0].weight)
    assert [list(x.shape) for x, _ in data] == [[15, 1, 10, 10], [5, 1, 10, 10]]
    masks = options.pop("masks")
    assert list(masks) == ["0.weight"] and masks.density == 1.0
    assert options == {
        **{"density": None, "sparsity": 0.75, "rounds": 5, "schedule": "linear"},
        **{"pattern": pxfast.patterns.Channels(), "min_density": 0.05},
        **{"scope": "layer", "checkpoint": Path("run.ckpt"), "criterion": "px-joint"},
        **{"batchnorm": "data", "include": ["0.*", "3.*"], "exclude": ["6.*", "9.*"]},
    }


def test_the_defaults_are_the_paper_s(model, monkeypatch):
    calls = []

    def find_masks(built, data, **options):
        calls.append((data, options))
        return pxfast.Masks({"0.weight": torch.ones(2, 2)})

    monkeypatch.setattr(commands, "find_masks", find_masks)
    assert run("prune", model, "--data", "digits", "--density", 0.02) == 0
    ((data, options),) = calls
    assert torch.cat([labels for _, labels in data]).bincount().tolist() == [10] * 10
    assert options["rounds"] == 100
    assert (options["schedule"], options["scope"]) == ("exponential", "global")
    assert (options["criterion"], options["batchnorm"]) == ("px", "running")


def test_a_pattern_sets_the_density_and_is_told(model, capsys):
    assert prune(model, "--pattern", "2:4") == 0
    captured = capsys.readouterr()
    assert "global scope, pattern 2:4, 100 samples" in captured.out
    assert captured.err == (
        "warning: pattern=2:4 does not fit, and leaves dense: 0.weight (1 inputs)\n"
    )
    masks = pxfast.Masks.load("masks.safetensors")
    assert [layer.density for layer in masks.layers] == [1.0, 0.5, 0.5]
    assert prune(model, "--pattern", "channels", "--density", 0.5, "--min-density", 0.3) == 0
    assert "pattern channels, at least 0.3 of each layer" in capsys.readouterr().out


def test_the_seed_chooses_model_and_samples(model):
    for seed in (0, 0, 1):
        assert prune(model, "--density", 0.3, "--seed", seed, "--output", f"{seed}.st") == 0
    expected = pxfast.prune(build(model, 1), batches(seed=1), density=0.3, rounds=3)
    found = pxfast.Masks.load("1.st")
    assert all(torch.equal(found[name], expected[name]) for name in LAYERS)
    other = pxfast.Masks.load("0.st")
    assert not all(torch.equal(found[name], other[name]) for name in LAYERS)


def test_weights_come_from_the_checkpoint(model):
    trained = build(model, seed=5)
    torch.save({"state_dict": trained.state_dict()}, "trained.pth")
    assert prune(model, "--density", 0.3, "--weights", "trained.pth") == 0
    expected = pxfast.prune(trained, batches(), density=0.3, rounds=3)
    found = pxfast.Masks.load("masks.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in LAYERS)


def test_excluded_layers_are_left_alone(model):
    assert prune(model, "--density", 0.3, "--exclude", "0.*", "6.weight") == 0
    assert list(pxfast.Masks.load("masks.safetensors")) == ["3.weight"]


def test_no_progress_bar_where_there_is_no_terminal(model, capsys):
    assert prune(model, "--density", 0.5) == 0
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_progress_bar_with_the_density(model, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert prune(model, "--density", 0.5) == 0
    assert "pruning: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    kept = pxfast.Masks.load("masks.safetensors").density
    assert f"density {kept:.3%}" in terminal.getvalue()


def test_warnings_are_one_line_each(model, capsys, monkeypatch):
    def find_masks(built, data, **options):
        warnings.warn("layer 3 is empty", stacklevel=1)
        return pxfast.Masks({"0.weight": torch.ones(2, 2)})

    monkeypatch.setattr(commands, "find_masks", find_masks)
    assert prune(model, "--density", 0.5) == 0
    assert capsys.readouterr().err == "warning: layer 3 is empty\n"


# ---- score, report, doctor


def test_score_writes_the_scores_that_the_function_finds(model, capsys):
    assert run("score", model, "--data", "digits", "--output", "s.safetensors") == 0
    scores = pxfast.Scores.load("s.safetensors")
    expected = pxfast.score(build(model), batches())
    assert list(scores) == LAYERS
    assert all(torch.equal(scores[name], expected[name]) for name in LAYERS)
    output = capsys.readouterr().out
    for name, total in expected.totals().items():
        (line,) = [line for line in output.splitlines() if line.startswith(name)]
        assert line.split()[1:] == [str(expected[name].numel()), f"{total:.6g}"]
    assert "made by: px, 100 samples" in output


@pytest.fixture
def masks_file(model, capsys) -> Path:
    assert prune(model, "--density", 0.2) == 0
    capsys.readouterr()
    return Path("masks.safetensors")


def test_report_prints_the_table(masks_file, capsys):
    assert run("report", masks_file, "--plot", "p.svg") == 0
    output = capsys.readouterr().out
    assert output.startswith(pxfast.Masks.load(masks_file).summary())
    assert "made by: px" in output
    assert "<svg" in Path("p.svg").read_text()


def test_report_prints_nothing_but_json_or_csv(masks_file, capsys):
    masks = pxfast.Masks.load(masks_file)
    assert run("report", masks_file, "--json", "--plot", "p.png") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == masks.kept
    assert run("report", masks_file, "--csv", "--plot", "p.png") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(int(row["kept"]) for row in rows) == masks.kept


def test_report_of_masks_made_elsewhere(model, capsys):
    pxfast.Masks({"a.weight": torch.eye(3)}).save("own.safetensors")
    assert run("report", "own.safetensors") == 0
    assert "made by: unknown" in capsys.readouterr().out


def test_doctor_says_what_runs_each_operation(capsys):
    assert run("doctor") == 0
    output = capsys.readouterr().out
    assert f"pxfast {pxfast.__version__}" in output
    assert f"torch {torch.__version__}" in output
    for key, value in pxfast._native.describe().items():
        assert f"{key}: {value}" in output
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line}
    for name in pxfast.ops.__all__:
        assert rows[name][0] in ("kernel", "reference")
    if pxfast._native.problem is None:
        assert rows["squared_linear"][0] == "kernel"


# ---- what goes wrong


def fails(capsys, message: str, *arguments: object) -> None:
    """The command ends with status 1 and one line that says why, before it has written anything."""
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith(f"pxfast {arguments[0]}: ")
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", 2], "density must be in (0, 1], got 2.0"),
        (["--sparsity", 1], "sparsity must be in [0, 1), got 1.0"),
        (["--density", 1e-9], "rounds to no weight at all"),
        (["--density", 0.1, "--model-arg", "depth=3"], "unexpected keyword argument 'depth'"),
        (["--density", 0.1, "--model-arg", "depth"], "expected KEY=VALUE, got 'depth'"),
        (["--density", 0.1, "--per-class", 10000], "fewer than per_class=10000"),
        (["--density", 0.1, "--batch-size", 0], "--batch-size must be at least 1, got 0"),
        (["--density", 0.1, "--rounds", 0], "rounds must be at least 1, got 0"),
        (["--density", 0.1, "--exclude", "head.*"], "'head.*' matches no weight"),
        (["--density", 0.1, "--weights", "gone.pt"], "no file gone.pt"),
        (["--density", 0.1, "--masks", "gone.st"], "gone.st"),
        (["--density", 0.1, "--output", "no/m.st"], "--output: there is no folder no"),
        (["--density", 0.1, "--output", "."], "--output: . is a folder"),
        (["--density", 0.1, "--plot", "p.gif"], "--plot: expected a file ending in .png"),
        (["--density", 0.1, "--plot", "no/p.png"], "--plot: there is no folder no"),
        (["--density", 0.1, "--checkpoint", "no/run"], "there is no folder"),
        (["--density", 0.1, "--data", "mnist"], "expected one of digits, imagefolder:DIR"),
        (["--density", 0.1, "--data", "random:3x8x8"], "could not be scored on batch 1"),
        (["--density", 0.1, "--device", "cuda:99"], "--device cuda:99: "),
        (["--density", 0.1, "--device", "quantum"], "--device quantum: "),
    ],
)
def test_prune_says_what_is_wrong(model, capsys, options, message):
    fails(capsys, message, "prune", model, "--data", "digits", *options)


def test_report_says_what_is_wrong_with_a_file(model, capsys, tmp_path):
    fails(capsys, "gone.st", "report", "gone.st")
    path = tmp_path / "foreign.st"
    path.write_bytes(b"no masks")
    fails(capsys, "not a whole safetensors file", "report", path)
    pxfast.Scores({"a": torch.ones(2)}).save(path)
    fails(capsys, "holds pxfast.scores, expected a pxfast.masks file", "report", path)


def test_a_missing_matplotlib_is_told_before_the_work(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(
        capsys, "pip install 'pxfast[demo]'",
        "prune", model, "--data", "digits", "--density", 0.1, "--plot", "p.png",
    )  # fmt: skip


def test_a_folder_that_cannot_be_written_is_told_before_the_work(model, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    fails(capsys, "cannot be written", "prune", model, "--data", "digits", "--density", 0.1)


def test_a_full_disk_is_told_after_the_table(model, capsys, monkeypatch):
    def full(masks, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pxfast.Masks, "save", full)
    assert prune(model, "--density", 0.3) == 1
    captured = capsys.readouterr()
    assert "all 3 layers" in captured.out
    assert "No space left on device: 'masks.safetensors'" in captured.err


def test_debug_shows_the_traceback(model, capsys):
    assert prune(model, "--density", 2, "--debug") == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("pxfast prune: density must be in (0, 1]")


def test_a_bug_is_not_hidden(model, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("a bug")

    monkeypatch.setattr(commands, "find_masks", broken)
    with pytest.raises(AssertionError, match="a bug"):
        prune(model, "--density", 0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["prune"],
        ["prune", "m:f", "--data", "digits"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--sparsity", "0.9"],
        ["prune", "m:f", "--data", "digits", "--density", "2%"],
        ["prune", "m:f", "--data", "digits", "--pattern", "channels"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--pattern", "4:2"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--pattern", "diagonal"],
        ["prune", "m:f", "--data", "digits", "--density", "0.1", "--criterion", "unheard"],
        ["report", "m.st", "--json", "--csv"],
        ["unheard"],
    ],
)
def test_wrong_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: pxfast" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "score", "prune", "compare", "report", "doctor"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"] if command else ["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    if command not in ("doctor",):
        assert "examples:\n  pxfast " in output
    if command == "prune":
        for said in ("fraction of the weights to keep, in (0, 1]", "(default: 100)", "paper's"):
            assert said in output


def test_the_examples_of_the_help_parse(capsys):
    from pxfast.cli import parser

    texts = [parser._TOP_EXAMPLES, parser._SCORE_EXAMPLES, parser._PRUNE_EXAMPLES]
    text = "\n".join([*texts, parser._REPORT_EXAMPLES]).replace("\\\n", "")
    lines = [line.split(">")[0].split() for line in text.splitlines() if " pxfast " in line]
    assert len(lines) == 13
    for line in lines:
        if line[-1] != "--help":
            assert parser.build_parser().parse_args(line[1:]).command == line[1]


INTERRUPTING = """
import os, signal
from nets_of_a_user import net

def interrupting(after):
    model, calls = net(), []

    def count(*_):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGINT)

    model.register_forward_hook(count)
    return model
"""


@pytest.fixture
def interrupts():
    """Python handles Ctrl-C, also where a shell runs the tests in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_with_130_and_the_run_can_be_resumed(model, capsys, monkeypatch):
    folder = Path(model.rpartition(":")[0]).parent
    monkeypatch.syspath_prepend(folder)
    (folder / "interrupting.py").write_text(INTERRUPTING)

    def run_until(call: int, *options: str) -> int:
        name = f"{folder}/interrupting.py:interrupting"
        chosen = ("--density", 0.2, "--rounds", 30)
        return prune(name, *chosen, "--model-arg", f"after={call}", *options)

    assert run_until(20, "--checkpoint", "run.ckpt") == 130
    error = capsys.readouterr().err
    assert error == "pxfast prune: interrupted; the same command goes on from the checkpoint\n"
    assert Path("run.ckpt").exists() and not Path("masks.safetensors").exists()
    assert run_until(10**6, "--checkpoint", "run.ckpt", "--output", "resumed.st") == 0
    assert run_until(10**6, "--output", "whole.st") == 0
    resumed, whole = pxfast.Masks.load("resumed.st"), pxfast.Masks.load("whole.st")
    assert all(torch.equal(resumed[name], whole[name]) for name in LAYERS)


def test_a_reader_that_stops_early_is_no_error(masks_file):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = f"{sys.executable} -m pxfast report {masks_file} --json | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
