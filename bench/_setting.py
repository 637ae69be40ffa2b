"""What the jobs about scoring and pruning measure on: a model, and the paper's pruning set."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import pxfast

MODELS = {"resnet20": pxfast.models.resnet20, "vgg16": pxfast.models.vgg16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say what is measured on."""
    parser.add_argument("--model", choices=MODELS, default="resnet20", help="what to prune")
    parser.add_argument("--size", type=int, default=32, help="height and width of the digits")
    parser.add_argument("--per-class", type=int, default=10, help="images of each of 10 classes")


def setting(model: str, size: int, per_class: int) -> tuple[nn.Module, Tensor]:
    """Return a model as it is initialised and a balanced set of handwritten digits, one batch."""
    torch.manual_seed(0)
    subset = pxfast.balanced_subset(pxfast.data.digits(size=size), per_class=per_class)
    images = torch.stack([image for image, _ in subset])
    return MODELS[model](num_classes=10, in_channels=images.shape[1]).eval(), images


def settings(images: Tensor) -> dict[str, object]:
    """Return what a result says about its images."""
    return {"data": "digits", "images": len(images), "image": list(images.shape[1:])}
