"""Random changes of training images, bytes [3, H, W], as the paper's recipes use them.

They draw from torch's global generator, so a seeded training sees the same images again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


def cifar(image: Tensor, padding: int = 4) -> Tensor:
    """A crop of the same size out of the image with black around it, and a flip by lot."""
    height, width = image.shape[1:]
    top, left = (_integer(2 * padding + 1) for _ in range(2))
    padded = F.pad(image, (padding,) * 4)
    return flip(padded[:, top : top + height, left : left + width])


def flip(image: Tensor) -> Tensor:
    """The image or, as often, its mirror image."""
    return image.flip(2) if _integer(2) else image


def resized_crop(
    image: Tensor, size: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """A crop of random area and shape, resized to ``[3, size, size]``, and a flip by lot.

    Args:
        image: what is cropped.
        size: height and width of the result.
        scale: range of the crop's area, of the image's.
        ratio: range of its width over its height, drawn by its logarithm.
    """
    height, width = image.shape[1:]
    for _ in range(10):
        area = height * width * _uniform(*scale)
        shape = math.exp(_uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = _integer(height - h + 1), _integer(width - w + 1)
            break
    else:  # a shape that fits nowhere: the middle
        h = w = min(height, width)
        top, left = (height - h) // 2, (width - w) // 2
    return flip(_resized(image[:, top : top + h, left : left + w], size))


tiny_imagenet = partial(resized_crop, size=64, scale=(0.1, 1.0), ratio=(0.8, 1.25))


def imagenet(image: Tensor, size: int = 224) -> Tensor:
    """A resized crop; one in five is grey; brightness, contrast, saturation and hue change."""
    image = resized_crop(image, size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
    values = image.float() / 255
    if _integer(5) == 0:
        values = _grey(values).expand_as(values)
    steps = [
        lambda x: _blend(x, torch.zeros(()), _uniform(0.6, 1.4)),  # brightness
        lambda x: _blend(x, _grey(x).mean(), _uniform(0.6, 1.4)),  # contrast
        lambda x: _blend(x, _grey(x), _uniform(0.6, 1.4)),  # saturation
        lambda x: _hue(x, _uniform(-0.4, 0.4)),
    ]
    for place in torch.randperm(len(steps)).tolist():
        values = steps[place](values)
    return (values * 255).round().to(torch.uint8)


def _integer(below: int) -> int:
    return int(torch.randint(below, ()))


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _resized(image: Tensor, size: int) -> Tensor:
    values = F.interpolate(
        image[None].float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return values[0].round().clamp(0, 255).to(torch.uint8)


def _grey(values: Tensor) -> Tensor:
    """Luminance [1, H, W] of an RGB image in [0, 1] (ITU-R BT.601)."""
    return (torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1) * values).sum(0, keepdim=True)


def _blend(values: Tensor, other: Tensor, share: float) -> Tensor:
    return (share * values + (1 - share) * other).clamp(0, 1)


def _hue(values: Tensor, turn: float) -> Tensor:
    """Colours turned around the grey axis, by a fraction of the whole circle."""
    angle = 2 * math.pi * turn
    axis = 1 / math.sqrt(3)
    cross = axis * torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    rotation = (  # Rodrigues' formula
        math.cos(angle) * torch.eye(3)
        + math.sin(angle) * cross
        + (1 - math.cos(angle)) / 3 * torch.ones(3, 3)
    )
    return torch.einsum("ij,jhw->ihw", rotation, values).clamp(0, 1)
