"""Prune a vision transformer of Hugging Face, save it, and load it with its zeros and masks.

    python examples/in_transformers.py

Takes a few seconds; the model is small and untrained, so that nothing is downloaded.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import ViTConfig, ViTForImageClassification

import pxfast
from pxfast.integrations.transformers import load_masks, save_pretrained


def main() -> None:
    """Prunes to 20%, saves, loads, and masks the loaded model for training."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
        image_size=64, patch_size=8, num_labels=10,
    )  # fmt: skip
    model = ViTForImageClassification(config)  # or .from_pretrained(…)
    batch = {"pixel_values": torch.randn(16, 3, 64, 64), "labels": torch.zeros(16).long()}

    masks = pxfast.prune(model, [batch], density=0.2, rounds=3, criterion="px-joint")
    print(masks.summary())

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, masks)
        loaded = ViTForImageClassification.from_pretrained(folder)
        for name, mask in masks.items():
            assert not loaded.get_parameter(name)[~mask].any()
        load_masks(folder).apply_(loaded)  # training keeps the zeros from here on


if __name__ == "__main__":
    main()
