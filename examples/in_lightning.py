"""Prune inside Lightning: the callback scores before the first step and keeps the zeros.

    python examples/in_lightning.py

Takes a few seconds; prints the table of the masks and the test accuracy.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import pxfast
from pxfast.data import digits
from pxfast.integrations.lightning import PXPruning


class Digits(pl.LightningModule):
    """ResNet-20 on handwritten digits, as it would be without pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.network = pxfast.models.resnet20(in_channels=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 1, 8, 8]."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum and weight decay: neither brings a removed weight back."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def main() -> None:
    """Prunes to 10% and trains for an epoch."""
    pl.seed_everything(0, verbose=False)
    model = Digits()
    train_set, test_set = digits(train=True), digits(train=False)

    pruning = PXPruning(
        density=0.1, rounds=5, data=DataLoader(pxfast.balanced_subset(train_set), batch_size=100)
    )
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[pruning], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(train_set, batch_size=64, shuffle=True))

    assert pruning.masks is not None
    print(pruning.masks.summary())
    for name, mask in pruning.masks.items():
        assert not model.get_parameter(name)[~mask].any(), f"{name}: a removed weight came back"
    images, labels = test_set.tensors
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == labels).float().mean().item()
    print(f"test accuracy at 10% density: {accuracy:.1%}")


if __name__ == "__main__":
    main()
