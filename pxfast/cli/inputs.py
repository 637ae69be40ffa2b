"""What the commands make of their arguments: the model, the data, checked paths."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pxfast.data
from pxfast._optional import require
from pxfast.errors import PxfastError
from pxfast.loading import load_model, load_weights_, parse_arguments
from pxfast.selection.masks import Masks

_PICTURES = (".png", ".svg", ".pdf")


def model_of(arguments: argparse.Namespace) -> nn.Module:
    """The model that the arguments name, on its device."""
    torch.manual_seed(arguments.seed)
    model = load_model(arguments.model, parse_arguments(arguments.model_arg))
    if arguments.weights is not None:
        load_weights_(model, arguments.weights)
    try:
        return model.to(arguments.device)
    except (AssertionError, RuntimeError) as error:  # torch without CUDA raises the former
        reason = str(error).partition("\n")[0]
        raise PxfastError(f"--device {arguments.device}: {reason}") from error


def batches_of(arguments: argparse.Namespace) -> list[Any]:
    """The balanced subset of the training data, read once and kept for all rounds."""
    if arguments.batch_size < 1:
        raise PxfastError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    dataset = pxfast.data.load(arguments.data, size=arguments.size)
    subset = pxfast.data.balanced_subset(dataset, arguments.per_class, arguments.seed)
    return list(DataLoader(subset, batch_size=arguments.batch_size))


def scoring_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that scoring and pruning share."""
    masks: Mapping[str, Tensor] | None = None
    if arguments.masks is not None:
        masks = Masks.load(arguments.masks)
    return {
        "criterion": arguments.criterion,
        "batchnorm": arguments.batchnorm,
        "masks": masks,
        "include": arguments.include,
        "exclude": arguments.exclude,
        "max_memory": arguments.max_memory,
    }


def check_writable(option: str, path: Path) -> None:
    """Refuses, before any work, a path that could not be written after it."""
    folder = path.parent
    if path.is_dir():
        raise PxfastError(f"{option}: {path} is a folder, expected a file's path")
    if not folder.is_dir():
        raise PxfastError(f"{option}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise PxfastError(f"{option}: the folder {folder} cannot be written")


def check_plot(path: Path | None) -> None:
    """Refuses, before any work, a picture that could not be drawn after it."""
    if path is None:
        return
    if path.suffix.lower() not in _PICTURES:
        raise PxfastError(f"--plot: expected a file ending in {', '.join(_PICTURES)}, got {path}")
    check_writable("--plot", path)
    require("matplotlib", "--plot", "pxfast[demo]")


def provenance_line(provenance: Mapping[str, Any]) -> str:
    """How scores or masks were made, in one line; empty if that is not known."""
    told = (
        ("criterion", "{}"),
        ("schedule", "{} schedule"),
        ("rounds", "{} rounds"),
        ("scope", "{} scope"),
        ("pattern", "pattern {}"),
        ("min_density", "at least {:g} of each layer"),
        ("samples", "{} samples"),
        ("data_pass", "data pass {}"),
        ("seed", "seed {}"),
        ("data_fingerprint", "data {:.8}"),
        ("model_fingerprint", "model {:.8}"),
        ("pxfast", "pxfast {}"),
    )
    parts = [form.format(provenance[key]) for key, form in told if key in provenance]
    return f"made by: {', '.join(parts)}" if parts else "made by: unknown"
