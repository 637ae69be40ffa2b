"""A short training, to see what a pruned network can still learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pxfast.paths.outputs import Select, selected
from pxfast.rng import preserved_rng

_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4


def train_and_test(
    model: nn.Module,
    train_set: Dataset,
    test_set: Dataset,
    *,
    epochs: int,
    lr: float = 0.05,
    batch_size: int = 128,
    seed: int = 0,
    output: Select = None,
    progress: bool | None = None,
) -> float:
    """Trains a classifier in place by SGD and returns its accuracy on other data.

    Cross-entropy, momentum 0.9, weight decay 5e-4, and a learning rate that falls to 0 along half a
    cosine. Nothing in it knows about masks: those that `Masks.apply_` put into the model keep
    their zeros. Global random generators are put back afterwards.

    Args:
        model: The classifier, on its device; left in evaluation mode.
        train_set: Map-style data set of ``(input, label)``, shuffled anew in every epoch.
        test_set: The same, to measure the accuracy on.
        epochs: Passes over the training set.
        lr: Learning rate at the start.
        batch_size: Samples per step; the last step of an epoch has what is left, unless that is a
            single sample, which BatchNorm could not take.
        seed: Of the order of the samples, and of dropout.
        output: Which output holds the logits; see `pxfast.score`.
        progress: True shows a progress bar, False none, None one if standard error is a terminal.

    Returns:
        Test accuracy in percent, after the last epoch.
    """
    device = next(model.parameters()).device
    order = torch.Generator().manual_seed(seed)
    samples = len(train_set)  # pyright: ignore[reportArgumentType]
    alone = samples > 1 and samples % batch_size == 1  # the last sample
    starts = range(0, samples - alone, batch_size)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY
    )
    steps = epochs * len(starts)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    disable = None if progress is None else not progress
    with preserved_rng(), tqdm(total=steps, desc="training", leave=False, disable=disable) as bar:
        torch.manual_seed(seed)
        model.train()
        for _ in range(epochs):
            places = torch.randperm(samples, generator=order).tolist()
            batches = [places[start : start + batch_size] for start in starts]
            for inputs, labels in DataLoader(train_set, batch_sampler=batches):
                logits = selected(model(inputs.to(device)), output)
                loss = F.cross_entropy(logits, labels.to(device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()
        return accuracy(model, test_set, batch_size=batch_size, output=output)


@torch.no_grad()
def accuracy(
    model: nn.Module, test_set: Dataset, *, batch_size: int = 128, output: Select = None
) -> float:
    """Returns the share of samples in percent whose largest logit is that of their label."""
    device = next(model.parameters()).device
    model.eval()
    correct = samples = 0
    for inputs, labels in DataLoader(test_set, batch_size):
        logits = selected(model(inputs.to(device)), output)
        correct += int((logits.argmax(1).cpu() == labels).sum())
        samples += len(labels)
    return 100 * correct / samples
