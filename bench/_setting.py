"""What the jobs about scoring and pruning measure on: a model, and images.

ResNet-20 and VGG-16 of pxfast.models with the paper's pruning set, handwritten digits; or networks
of torchvision and timm with random images of ImageNet's kind, whose scores mean nothing but take
the same time.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import pxfast
from bench._libraries import load

DIGITS = {"resnet20": pxfast.models.resnet20, "vgg16": pxfast.models.vgg16}
TORCHVISION = {"resnet50": 16, "mobilenet_v2": 16, "vgg16": 16}  # and how many images
TIMM = {"vit_base_patch16_224": 8, "vit_large_patch16_224": 8}
IMAGENET = TORCHVISION | TIMM
DIGITS_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser, random_size: int = 224) -> None:
    """Declare the options that say what is measured on."""
    parser.add_argument(
        "--model",
        choices=list(dict.fromkeys([*DIGITS, *IMAGENET])),
        default="resnet20",
        help="what to prune",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="take this number of random images and torchvision's or timm's network of that name "
        "(by default digits where pxfast.models has the network, otherwise 16 random images, or 8 "
        "for a vision transformer)",
    )
    parser.add_argument(
        "--size",
        type=int,
        help=f"height and width (by default {DIGITS_SIZE} of digits, {random_size} of random "
        "images)",
    )
    parser.add_argument("--per-class", type=int, default=10, help="digits of each of 10 classes")
    parser.set_defaults(random_size=random_size)


def of(arguments: argparse.Namespace) -> dict[str, object]:
    """Return what `setting` is to be called with."""
    images = arguments.images or (None if arguments.model in DIGITS else IMAGENET[arguments.model])
    size = arguments.size or (DIGITS_SIZE if images is None else arguments.random_size)
    return {
        "model": arguments.model,
        "size": size,
        "per_class": arguments.per_class,
        "images": images,
    }


def setting(
    model: str, size: int, per_class: int, images: int | None = None
) -> tuple[nn.Module, Tensor]:
    """Return a model as it is initialised and its images, one batch.

    Args:
        model: a name of `DIGITS`, or with `images` one of `IMAGENET`.
        size: height and width of the images.
        per_class: digits of every class, without `images`.
        images: number of random images, or None for digits.
    """
    torch.manual_seed(0)
    if images is not None:
        if model not in IMAGENET:
            raise SystemExit(f"--images: expected a model of {', '.join(IMAGENET)}, got {model}")
        if model in TIMM:
            network = load("timm").create_model(model, img_size=size)
        else:
            network = getattr(load("torchvision").models, model)(weights=None)
        return network.eval(), torch.rand(images, 3, size, size)
    subset = pxfast.balanced_subset(pxfast.data.digits(size=size), per_class=per_class)
    digits = torch.stack([image for image, _ in subset])
    return DIGITS[model](num_classes=10, in_channels=digits.shape[1]).eval(), digits


def settings(images: Tensor) -> dict[str, object]:
    """Return what a result says about its images: one channel are digits, three are random."""
    data = "digits" if images.shape[1] == 1 else "random"
    return {"data": data, "images": len(images), "image": list(images.shape[1:])}


def subject(model: str, images: Tensor) -> str:
    """Return what a result is called after: the model, and the size of random images."""
    return model if images.shape[1] == 1 else f"{model}-{images.shape[-1]}"
