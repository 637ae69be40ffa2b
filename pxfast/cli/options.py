"""The options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pxfast import criteria
from pxfast.data import DATA_NAMES
from pxfast.loading import MODEL_NAMES


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
        choices=criteria.NAMES,
        default="px",
        metavar="NAME",
        help="px: the paper's; px-joint: weights and data in one sum over paths; to compare with: "
        f"{', '.join(criteria.NAMES[2:])}",
    )
    add_batchnorm(group, "statistics that BatchNorm uses")
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
