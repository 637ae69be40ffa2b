"""Pictures as tensors: what the data sets from local folders share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pxfast.errors import DataError

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
Transform = Callable[[Tensor], Tensor]  # bytes [3, H, W] -> bytes [3, h, w]


def check_size(size: int) -> None:
    """Raises a DataError unless the size is a positive number of pixels."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DataError(f"size must be a positive number of pixels, got {size!r}")


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes [C, H, W] to float32 with the given mean and deviation of each channel."""
    shape = (-1, 1, 1)
    return (image.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def read_image(pillow: Any, path: Any, what: str) -> Any:
    """The RGB picture of a file, by the module PIL.Image.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with pillow.open(path) as file:
            return file.convert("RGB")
    except OSError as error:
        raise DataError(f"{what}: cannot read the image {path}: {error}") from error


def to_bytes(image: Any) -> Tensor:
    """An RGB picture of PIL as bytes [3, H, W]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def evaluation_crop(pillow: Any, image: Any, size: int) -> Any:
    """The usual evaluation transform: the shorter side to 256/224 · size, the centre cut out."""
    scale = round(size * 256 / 224) / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), pillow.Resampling.BILINEAR)
    return image.crop((left, top, left + size, top + size))
