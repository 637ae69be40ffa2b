"""What px-joint keeps for its backward is in the forward's dtype."""

from __future__ import annotations

import pytest
import torch
from nets import seeded
from torch import Tensor, nn

import pxfast


class Transformer(nn.Module):
    """Patches, four blocks, the mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 3, 96, batch_first=True, activation="gelu")
        self.embed, self.head = nn.Linear(24, 48), nn.Linear(48, 5)
        self.blocks = nn.TransformerEncoder(layer, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


def kept(dtype: torch.dtype, autocast: torch.dtype | None = None) -> dict[torch.dtype, int]:
    """Bytes that the pass keeps for its backward, by dtype; what is kept twice counts once."""
    model = seeded(Transformer, 1).to(dtype)
    storages: dict[int, tuple[torch.dtype, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (tensor.dtype, storage.nbytes())
        return tensor

    x = torch.randn(8, 17, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pxfast.score(model, x, criterion="px-joint", dtype=autocast)
    found: dict[torch.dtype, int] = {}
    for of, size in storages.values():
        found[of] = found.get(of, 0) + size
    return found


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_keep_half(half):
    whole, halves = kept(torch.float32), kept(half)
    assert half not in whole
    assert halves.get(torch.float32, 0) < 0.1 * whole[torch.float32]
    assert sum(halves.values()) < 0.65 * sum(whole.values())


def test_autocast_keeps_less():
    whole, mixed = kept(torch.float32), kept(torch.float32, torch.bfloat16)
    assert mixed[torch.bfloat16] > 0.15 * whole[torch.float32]
    assert sum(mixed.values()) < 0.85 * sum(whole.values())
