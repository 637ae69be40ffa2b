"""Tiny data sets on disk, in the formats in which the real ones are unpacked."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> None:
    """An image of one colour, width by height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_cifar(folder: Path, count: int = 4) -> dict[str, np.ndarray]:
    """The six batch files of CIFAR-10, of `count` images each; returns the images by file."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    images = {}
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        images[name] = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {b"data": images[name], b"labels": [k % 10 for k in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return images


def write_cifar100(folder: Path, count: int = 4) -> dict[str, np.ndarray]:
    """The two files of CIFAR-100, of `count` images each; returns the images by file."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    images = {}
    for name in ("train", "test"):
        images[name] = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {
            b"data": images[name],
            b"fine_labels": [99 - k % 100 for k in range(count)],
            b"coarse_labels": [k % 20 for k in range(count)],
            b"filenames": [b"image.png"] * count,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return images


CLASSES = {"n02": (255, 0, 0), "n01": (0, 255, 0)}  # and the colour of their images


def write_tiny_imagenet(folder: Path, count: int = 2) -> None:
    """Tiny-ImageNet of two classes, with `count` images of each in each part."""
    for name, colour in CLASSES.items():
        for number in range(count):
            save_image(folder / f"train/{name}/images/{name}_{number}.JPEG", colour, (64, 64))
        (folder / f"train/{name}/{name}_boxes.txt").write_text("not an image")
    lines = []
    for number, name in enumerate([*CLASSES] * count):
        save_image(folder / f"val/images/val_{number}.JPEG", CLASSES[name], (64, 64))
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t62\t62\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def write_image_folder(folder: Path, count: int = 2) -> None:
    """Two classes in one folder each, in halves, with `count` images of each."""
    for half in ("train", "val"):
        for name, colour in CLASSES.items():
            for number in range(count):
                save_image(folder / f"{half}/{name}/{number}.JPEG", colour)
