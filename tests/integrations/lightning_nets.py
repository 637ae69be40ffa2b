"""A LightningModule and its data, for the tests, and a fit on two ranks that they start:
``python tests/integrations/lightning_nets.py FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from libraries import library
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pl = library("lightning.pytorch")

# px-joint: its masks tell other data at once
SETTINGS: dict[str, Any] = {"density": 0.4, "rounds": 3, "criterion": "px-joint"}


class Restless(torch.optim.SGD):
    """An optimiser that moves every weight, whatever its gradient is."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(0.01)
        return loss


class Net(pl.LightningModule):
    """A small network with BatchNorm; two convolutions, so that masks depend on the data."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.optimizer = optimizer
        generator = torch.Generator().manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 6, 3, bias=False), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(24, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.3, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        if self.optimizer == "restless":
            return Restless(self.parameters(), lr=0.05)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


def samples(count: int = 24) -> TensorDataset:
    """Random images with labels, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count) % 4)


def loader(batch_size: int = 8) -> DataLoader:
    """Batches in a fixed order."""
    return DataLoader(samples(), batch_size=batch_size)


def trainer(**options: Any) -> Any:
    """A Trainer that writes nothing."""
    quiet = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1,
    }  # fmt: skip
    return pl.Trainer(**quiet | options)


def main() -> None:
    """Fits on two ranks; each writes its masks, its weights and its first batch."""
    from pxfast.integrations.lightning import PXPruning

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index == 0:
                self.batch = batch[0].clone()

    pruning, record = PXPruning(**SETTINGS), Record()
    model = Net()
    fit = trainer(devices=2, strategy="ddp", callbacks=[pruning, record])
    fit.fit(model, loader(4))
    content = {
        "masks": dict(pruning.masks), "weights": model.state_dict(), "batch": record.batch,
    }  # fmt: skip
    torch.save(content, Path(sys.argv[1]) / f"rank{fit.global_rank}.pt")


if __name__ == "__main__":
    main()
