"""Export a pruned network to ONNX and by torch.export, with its zeros in place.

    python examples/in_onnx.py

Takes a few seconds; prints how many zeros each initialiser of the ONNX file holds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

import pxfast
from pxfast.integrations.onnx import export


def main() -> None:
    """Prunes ResNet-20 to 5%, exports it twice, and counts the zeros."""
    torch.manual_seed(0)
    model = pxfast.models.resnet20(num_classes=10)
    images = torch.randn(8, 3, 32, 32)
    masks = pxfast.score(model, images).masks(density=0.05)
    masks.apply_(model)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resnet20.onnx"
        export(model, (images,), file)  # checks every zero; the model itself can go on training
        zeros = {
            tensor.name: int((numpy_helper.to_array(tensor) == 0).sum())
            for tensor in onnx.load(file).graph.initializer
        }
    for name, mask in masks.items():
        print(f"{name:32} {zeros[name]:7,} of {mask.numel():7,} are zero")
        assert zeros[name] == int((~mask).sum())

    plain = pxfast.bake(model).eval()
    exported = torch.export.export(plain, (images,))
    for name, mask in masks.items():
        assert torch.equal(exported.state_dict[name] != 0, mask)


if __name__ == "__main__":
    main()
