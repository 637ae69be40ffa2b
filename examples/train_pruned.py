"""Prune a network, train what is left in plain PyTorch, and end with exactly the same zeros.

    python examples/train_pruned.py --optimiser adamw --epochs 3

`masks.apply_` uses torch.nn.utils.prune: every forward multiplies the weight by its mask. So the
loop, the optimiser, its momentum and its weight decay need not know that the network is pruned.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader

import pxfast
from pxfast.data import digits

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "adam": lambda p: torch.optim.Adam(p, lr=2e-3, weight_decay=5e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.05),
}


def main() -> None:
    """Prunes, trains, tests, and checks the zeros."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--density", type=float, default=0.05, help="fraction of weights kept")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of pruning")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--optimiser", choices=OPTIMISERS, default="sgd")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = pxfast.models.resnet20(in_channels=1)
    train_set, test_set = digits(train=True), digits(train=False)

    # 1. Masks, from ten images of every class. The model is not changed.
    samples = DataLoader(pxfast.balanced_subset(train_set, per_class=10), batch_size=100)
    masks = pxfast.prune(model, samples, density=arguments.density, rounds=arguments.rounds)

    # 2. Mask the model, then make the optimiser.
    masks.apply_(model)
    optimiser = OPTIMISERS[arguments.optimiser](model.parameters())

    # 3. Train as ever.
    loader = DataLoader(train_set, batch_size=128, shuffle=True)
    for epoch in range(arguments.epochs):
        model.train()
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.eval()
        images, labels = test_set.tensors
        with torch.no_grad():
            correct = (model(images).argmax(1) == labels).float().mean().item()
        print(f"epoch {epoch + 1}: test accuracy {100 * correct:.1f}%")

    # 4. Make the zeros permanent, and see that they are the same.
    for name in masks:
        torch_prune.remove(model.get_submodule(name.rpartition(".")[0]), "weight")
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        assert torch.all(weights[name][~mask] == 0), f"{name}: a removed weight came back"
        assert torch.all(weights[name][mask] != 0), f"{name}: a kept weight became zero"
    zeros = sum(int((weights[name] == 0).sum()) for name in masks)
    print(f"{zeros:,} of {masks.total:,} weights are zero, exactly those that the masks removed")


if __name__ == "__main__":
    main()
