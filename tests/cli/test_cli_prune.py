"""pxfast prune."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from command_line import LAYERS, batches, build, fails, prune, run

import pxfast
from pxfast.cli import prune as command


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

    monkeypatch.setattr(command, "find_masks", find_masks)
    pxfast.Masks({"0.weight": torch.ones(9, 1, 3, 3)}).save("before.safetensors")
    status = run(
        *("prune", model, "--model-arg", "width=9", "--data", "digits", "--size", 10),
        *("--per-class", 2, "--batch-size", 15, "--seed", 7, "--sparsity", 0.75),
        *("--rounds", 5, "--schedule", "linear", "--scope", "layer", "--checkpoint", "run.ckpt"),
        *("--pattern", "channels", "--min-density", 0.05),
        *("--criterion", "px-joint", "--batchnorm", "data", "--masks", "before.safetensors"),
        *("--include", "0.*", "3.*", "--exclude", "6.*", "--exclude", "9.*"),
        *("--max-memory", "2G"),
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
        "max_memory": 2 * 2**30,
    }


def test_the_defaults_are_the_paper_s(model, monkeypatch):
    calls = []

    def find_masks(built, data, **options):
        calls.append((data, options))
        return pxfast.Masks({"0.weight": torch.ones(2, 2)})

    monkeypatch.setattr(command, "find_masks", find_masks)
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

    monkeypatch.setattr(command, "find_masks", find_masks)
    assert prune(model, "--density", 0.5) == 0
    assert capsys.readouterr().err == "warning: layer 3 is empty\n"


# ---- interruptions


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


# ---- what goes wrong


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
