"""The training loop of the demo and of bench/quality.py: short, seeded, one recipe for all."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm


def train(
    model: nn.Module,
    train_set: TensorDataset,
    test_set: TensorDataset,
    *,
    epochs: int = 10,
    lr: float = 0.1,
    seed: int = 0,
    batch_size: int = 128,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    title: str | None = None,
) -> float:
    """Trains by SGD with momentum, weight decay and a cosine schedule, and tests once at the end.

    Nothing in it knows about masks: those that `Masks.apply_` put into the model keep their zeros.

    Args:
        model: A classifier; trained in place and left in evaluation mode.
        train_set: Images and labels to train on, shuffled anew in every epoch.
        test_set: Images and labels that the accuracy is measured on.
        epochs: Passes over the training set.
        lr: Learning rate at the start; it falls to 0 along half a cosine.
        seed: Of the order of the training samples.
        batch_size: Samples per step.
        momentum: Of SGD.
        weight_decay: Of SGD.
        title: Shows a progress bar of this name on a terminal; None shows none.

    Returns:
        Test accuracy in percent.
    """
    images, labels = train_set.tensors
    optimiser = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    steps = epochs * math.ceil(len(labels) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = torch.Generator().manual_seed(seed)
    model.train()
    with tqdm(total=steps, desc=title, disable=True if title is None else None) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(labels), generator=order).split(batch_size):
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()
    return accuracy(model, test_set)


@torch.no_grad()
def accuracy(model: nn.Module, test_set: TensorDataset) -> float:
    """Returns the share of samples in percent whose largest logit is that of their label."""
    model.eval()
    images, labels = test_set.tensors
    correct = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(256), labels.split(256), strict=True)
    )
    return 100 * correct / len(labels)
