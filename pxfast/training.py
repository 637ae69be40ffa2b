"""A short training, to see what a pruned network can still learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pxfast.paths.outputs import Select, selected
from pxfast.rng import preserved_rng

Optimiser = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


def sgd(
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum 0.9.

    Args:
        parameters: What is trained.
        lr: Learning rate.
        weight_decay: Of all parameters.
        nesterov: Whether the momentum is Nesterov's.
    """
    return torch.optim.SGD(
        parameters, lr, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov
    )


def train_and_test(
    model: nn.Module,
    train_set: Dataset,
    test_set: Dataset,
    *,
    epochs: int,
    lr: float = 0.05,
    batch_size: int = 128,
    optimiser: Optimiser = sgd,
    milestones: Sequence[int] | None = None,
    workers: int = 0,
    seed: int = 0,
    output: Select = None,
    progress: bool | None = None,
) -> float:
    """Trains a classifier in place and returns its accuracy on other data.

    Cross-entropy; by default SGD with momentum 0.9, weight decay 5e-4, and a learning rate that
    falls to 0 along half a cosine. Nothing in it knows about masks: those that `Masks.apply_` put
    into the model keep their zeros. Global random generators are put back afterwards.

    Args:
        model: The classifier, on its device; left in evaluation mode.
        train_set: Map-style data set of ``(input, label)``, shuffled anew in every epoch.
        test_set: The same, to measure the accuracy on.
        epochs: Passes over the training set.
        lr: Learning rate at the start.
        batch_size: Samples per step; the last step of an epoch has what is left, unless that is a
            single sample, which BatchNorm could not take.
        optimiser: Makes the optimiser from the parameters and the learning rate.
        milestones: Epochs after which the learning rate is divided by 10, in place of the cosine.
        workers: Processes that load the training set; 0 loads it in this one.
        seed: Of the order of the samples, of dropout, and of random transforms.
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
    chosen = optimiser(model.parameters(), lr)
    steps = epochs * len(starts)
    schedule = _schedule(
        chosen, steps, None if milestones is None else [epoch * len(starts) for epoch in milestones]
    )
    disable = None if progress is None else not progress
    with preserved_rng(), tqdm(total=steps, desc="training", leave=False, disable=disable) as bar:
        torch.manual_seed(seed)
        model.train()
        for _ in range(epochs):
            places = torch.randperm(samples, generator=order).tolist()
            batches = [places[start : start + batch_size] for start in starts]
            for inputs, labels in DataLoader(train_set, batch_sampler=batches, num_workers=workers):
                logits = selected(model(inputs.to(device)), output)
                loss = F.cross_entropy(logits, labels.to(device))
                chosen.zero_grad()
                loss.backward()
                chosen.step()
                schedule.step()
                bar.update()
        return accuracy(model, test_set, batch_size=batch_size, output=output)


def _schedule(
    optimiser: torch.optim.Optimizer, steps: int, milestones: Sequence[int] | None
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate by step: half a cosine, or a tenth after each milestone."""
    if milestones is None:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    return torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones)


@torch.no_grad()
def accuracy(
    model: nn.Module, test_set: Dataset, *, batch_size: int = 128, output: Select = None
) -> float:
    """Tests a classifier.

    Args:
        model: The classifier, on its device; left in evaluation mode.
        test_set: Data set of ``(input, label)``.
        batch_size: Samples at a time.
        output: Which output holds the logits; see `pxfast.score`.

    Returns:
        The share of samples in percent whose largest logit is that of their label.
    """
    device = next(model.parameters()).device
    model.eval()
    correct = samples = 0
    for inputs, labels in DataLoader(test_set, batch_size):
        logits = selected(model(inputs.to(device)), output)
        correct += int((logits.argmax(1).cpu() == labels).sum())
        samples += len(labels)
    return 100 * correct / samples
