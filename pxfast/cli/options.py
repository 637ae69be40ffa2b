"""The options that several commands have."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from pxfast import criteria
from pxfast.data import DATA_NAMES
from pxfast.loading import MODEL_NAMES
from pxfast.suggest import did_you_mean

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(?:i?B)?", re.IGNORECASE)


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Declares the model's options; an optional model is an option itself."""
    group = parser.add_argument_group("model")
    name = "model" if required else "--model"
    group.add_argument(name, metavar="MODEL", help=f"one of {MODEL_NAMES}")
    group.add_argument(
        "--model-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="keyword argument of the factory, such as num_classes=10; may be repeated",
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint of the weights, .safetensors or torch (read with weights_only=True); "
        "without it the network is as its factory initialises it from --seed",
    )
    group.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="where the model runs, such as cuda or cuda:1",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the model and the samples"
    )


def add_data(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Declares the data's options."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        required=required,
        metavar="NAME",
        help=f"one of {DATA_NAMES}; the training part, nothing is downloaded",
    )
    group.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="height and width of digits (default 8) and imagefolder (default 224)",
    )
    group.add_argument(
        "--per-class", type=int, default=10, metavar="N", help="samples of every class"
    )
    group.add_argument(
        "--batch-size", type=int, default=100, metavar="N", help="samples in memory at a time"
    )


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Declares what is scored, and by what."""
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--criterion",
        type=criterion,
        default="px",
        metavar="NAME",
        help="px: the paper's; px-joint: weights and data in one sum over paths; to compare with: "
        f"{', '.join(criteria.NAMES[2:])}",
    )
    add_batchnorm(group, "statistics that BatchNorm uses")
    add_max_memory(group, "memory for scoring by px or px-joint")
    group.add_argument(
        "--masks", type=Path, metavar="FILE", help="masks to start from: what they removed stays so"
    )
    group.add_argument(
        "--include",
        nargs="+",
        action="extend",
        metavar="GLOB",
        help="weights to score, such as 'layer1.*' (default: all linear and convolution weights)",
    )
    group.add_argument(
        "--exclude", nargs="+", action="extend", metavar="GLOB", help="weights to leave alone"
    )


def add_batchnorm(group: Any, text: str) -> None:
    """Declares whose statistics BatchNorm uses."""
    group.add_argument("--batchnorm", choices=("running", "data"), default="running", help=text)


def add_max_memory(group: Any, text: str) -> None:
    """Declares the limit of what scoring takes."""
    group.add_argument(
        "--max-memory",
        type=_bytes,
        metavar="SIZE",
        help=f"{text}, on top of the model and a batch, scores included: such as 2G or 512M, in "
        "powers of 1024, or a number of bytes; batches are split to stay below it (default: no "
        "limit)",
    )


def criterion(name: str) -> str:
    """Checks the name of a criterion, as argparse wants it."""
    if name not in criteria.NAMES:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {name!r} (choose from {', '.join(criteria.NAMES)})"
            f"{did_you_mean(name, criteria.NAMES)}"
        )
    return name


def _bytes(text: str) -> int:
    """Reads a number of bytes, as argparse wants it."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 2G or 512M, got {text!r}")
    return size


def add_amount(group: Any, required: bool = False) -> None:
    """Declares how much is kept, or removed."""
    amount = group.add_mutually_exclusive_group(required=required)
    amount.add_argument(
        "--density", type=float, metavar="D", help="fraction of the weights to keep, in (0, 1]"
    )
    amount.add_argument(
        "--sparsity", type=float, metavar="S", help="fraction to remove, in [0, 1): 1 - density"
    )


def add_scope(group: Any) -> None:
    """Declares what competes."""
    group.add_argument(
        "--scope",
        choices=("global", "layer"),
        default="global",
        help="all weights compete, or every layer keeps the same fraction",
    )


def add_plot(group: Any, what: str) -> None:
    """Declares the picture's file."""
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"picture of {what}: .png, .svg or .pdf"
    )
