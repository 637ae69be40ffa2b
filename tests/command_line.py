"""A small model for the command line, and short ways to run it."""

from __future__ import annotations

from pathlib import Path

import torch

import pxfast
from pxfast.cli import main
from pxfast.data import digits

SOURCE = """
from torch import nn

def net(width=12):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10),
    )
"""
LAYERS = ["0.weight", "3.weight", "6.weight"]


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
