"""A small network and a plain criterion for the tests of prune()."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BATCH = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.ReLU(),
            nn.Linear(16, 3),
        )


class Magnitude:
    """|θ| under the masks, times the factors that are drawn from the data; notes what it saw."""

    def __init__(self, factors: Mapping[str, float] | None = None) -> None:
        self.factors = factors or {}
        self.masks: list[dict[str, Tensor]] = []
        self.batches: list[list[Tensor]] = []

    def score(self, model, data, *, masks):
        self.masks.append({name: mask.clone() for name, mask in masks.items()})
        self.batches.append([torch.as_tensor(batch[0]) for batch in data])
        scores = {}
        for name, parameter in model.named_parameters():
            name = name.replace("_orig", "")
            if name.endswith("weight") and parameter.dim() > 1:
                scores[name] = parameter.abs() * self.factors.get(name, 1.0)
                scores[name] *= masks.get(name, torch.ones(()))
        return scores


def kept(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())
