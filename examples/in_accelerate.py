"""Score a model whose weights are on disk, layer by layer, and prune it there.

    python examples/in_accelerate.py

Takes a few seconds; the scores are those of the model in memory, to the last bit.
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import disk_offload
from transformers import ConvNextConfig, ConvNextForImageClassification

import pxfast
from pxfast.integrations.accelerate import apply_masks


def build() -> torch.nn.Module:
    """A small ConvNeXt with random weights, the same every time."""
    torch.manual_seed(0)
    config = ConvNextConfig(
        hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 2, 1], image_size=64, num_labels=10
    )
    return ConvNextForImageClassification(config).eval()


def main() -> None:
    """Scores in memory and from disk, compares, and sets zeros in the files."""
    batch = {"pixel_values": torch.randn(8, 3, 64, 64)}
    in_memory = pxfast.score(build(), batch)

    with tempfile.TemporaryDirectory() as folder:
        model = build()
        disk_offload(model, folder)  # every parameter is on the meta device from here on
        scores = pxfast.score(model, batch)
        assert all(torch.equal(scores[name], in_memory[name]) for name in in_memory)

        masks = scores.masks(density=0.2)
        apply_masks(model, masks)  # in the files of the folder
        with torch.no_grad():
            logits = model(**batch).logits
        assert all(parameter.is_meta for parameter in model.parameters())

    pruned = masks.apply_(build(), in_place=True)
    with torch.no_grad():
        assert torch.equal(pruned(**batch).logits, logits)
    print(masks.summary())


if __name__ == "__main__":
    main()
