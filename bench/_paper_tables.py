"""The paper's tables: which network on which data, at which densities, by which recipe.

Recipes (epochs, optimiser, milestones, changes of the training images) are those of the authors'
repository, https://github.com/iurada/px-ntk-pruning, so far as it states them. Its scripts prune to
0.018 = 0.8^18 in 100 rounds; the other densities are even powers of 0.8, as is usual in this field.
The pruning set is the paper's, 10 images of every class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import pxfast
from bench import _augment
from bench._libraries import load
from pxfast.data import CIFAR10, CIFAR100, ImageFolder, TinyImageNet
from pxfast.models import BasicBlock
from pxfast.training import Optimiser, sgd

DENSITIES = tuple(round(0.8**power, 4) for power in (8, 10, 12, 14, 16, 18))
ROUNDS, PER_CLASS, SEEDS = 100, 10, 3


class ResNet18(nn.Module):
    """ResNet-18 for images of 64 by 64: a 3 by 3 stem that keeps the size, no pooling behind it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = [64, 64, 128, 256, 512]
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        for stage, (before, width) in enumerate(itertools.pairwise(widths)):
            blocks.append(BasicBlock(before, width, 2 if stage else 1, batchnorm=True))
            blocks.append(BasicBlock(width, width, 1, batchnorm=True))
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[N, 3, H, W]`` to logits ``[N, num_classes]``."""
        x = self.blocks(self.stem(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet50(num_classes: int) -> nn.Module:
    """torchvision's, as it is initialised."""
    return load("torchvision").models.resnet50(weights=None, num_classes=num_classes)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: cross-entropy, SGD with momentum 0.9, a tenth at each milestone.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images per step.
        lr: Learning rate at the start.
        milestones: Epochs after which it is divided by 10.
        weight_decay: Of all parameters.
        nesterov: Whether the momentum is Nesterov's.
    """

    epochs: int
    batch_size: int
    lr: float
    milestones: tuple[int, ...]
    weight_decay: float
    nesterov: bool = False

    @property
    def optimiser(self) -> Optimiser:
        """Makes the optimiser."""
        return partial(sgd, weight_decay=self.weight_decay, nesterov=self.nesterov)

    def __str__(self) -> str:
        kind = "SGD with Nesterov's momentum" if self.nesterov else "SGD with momentum"
        return (
            f"{self.epochs} epochs, batches of {self.batch_size}, {kind} 0.9 from {self.lr:g}, "
            f"a tenth after epochs {', '.join(map(str, self.milestones))}, weight decay "
            f"{self.weight_decay:g}"
        )


@dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        network: Makes the network, from the number of classes.
        title: Its name and that of the data.
        data: Opens the data set in a folder, with `train` and `transform`.
        layout: What the folder has to hold.
        classes: Number of classes; a smaller folder is no error, but a note.
        recipe: The training.
        augment: Changes the training images.
    """

    network: Callable[[int], nn.Module]
    title: str
    data: Callable[..., Dataset[Any]]
    layout: str
    classes: int
    recipe: Recipe
    augment: _augment.Transform

    def sets(self, folder: Path) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Open the images to train with, the same unchanged, and those to test with."""
        return (
            self.data(folder, train=True, transform=self.augment),
            self.data(folder, train=True),
            self.data(folder, train=False),
        )


TABLES = {
    "cifar10-resnet20": Table(
        network=pxfast.models.resnet20,
        title="ResNet-20 on CIFAR-10",
        data=CIFAR10,
        layout="cifar-10-batches-py (from cifar-10-python.tar.gz)",
        classes=10,
        recipe=Recipe(160, 128, 0.1, (80, 120), 1e-4),
        augment=_augment.cifar,
    ),
    "cifar100-vgg16": Table(
        network=pxfast.models.vgg16,
        title="VGG-16 on CIFAR-100",
        data=CIFAR100,
        layout="cifar-100-python (from cifar-100-python.tar.gz)",
        classes=100,
        recipe=Recipe(160, 128, 0.1, (60, 120), 5e-4, nesterov=True),
        augment=_augment.cifar,
    ),
    "tiny-imagenet-resnet18": Table(
        network=ResNet18,
        title="ResNet-18 on Tiny-ImageNet",
        data=TinyImageNet,
        layout="tiny-imagenet-200 (from tiny-imagenet-200.zip)",
        classes=200,
        recipe=Recipe(200, 256, 0.2, (100, 150), 1e-4),
        augment=_augment.tiny_imagenet,
    ),
    "imagenet-resnet50": Table(
        network=resnet50,
        title="ResNet-50 on ImageNet",
        data=ImageFolder,
        layout="train/CLASS/*.JPEG and val/CLASS/*.JPEG",
        classes=1000,
        recipe=Recipe(90, 448, 0.1, (30, 60, 80), 1e-4),
        augment=_augment.imagenet,
    ),
}
