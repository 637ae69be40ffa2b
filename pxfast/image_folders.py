"""Images in folders: torchvision's layout with one folder per class, and Tiny-ImageNet's own."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from pxfast._optional import require
from pxfast.errors import DataError
from pxfast.images import (
    IMAGE_SUFFIXES,
    Transform,
    check_size,
    evaluation_crop,
    normalise,
    read_image,
    to_bytes,
)

_EXTRA = "pxfast[demo]"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TINY_MEAN, _TINY_STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
_TINY_INNER = "tiny-imagenet-200"


class ImageFolder(Dataset):
    """Images in one folder per class, torchvision's layout; classes in alphabetical order."""

    def __init__(
        self,
        root: str | Path,
        *,
        train: bool = True,
        size: int = 224,
        transform: Transform | None = None,
    ) -> None:
        """Lists the images; they are read when asked for.

        Args:
            root: A folder of class folders, or a folder that holds such folders as ``train`` and
                ``val`` (or ``test``).
            train: Which of the two halves; without halves only True is possible.
            size: Height and width in pixels after the usual evaluation transform: the shorter
                side scaled to ``256/224 * size``, then the centre cut out.
            transform: In place of that, makes bytes ``[3, size, size]`` of the whole image.

        Raises:
            DataError: If a folder is missing or holds no images, or ``size`` is not positive.
            MissingPackageError: If pillow is not installed.
        """
        check_size(size)
        self._pillow = require("PIL.Image", "the data set imagefolder", _EXTRA)
        self.size, self.transform = size, transform
        folder = _half(Path(root), train)
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        self.paths: list[Path] = []
        self.targets: list[int] = []
        for label, name in enumerate(self.classes):
            found = _images_under(folder / name)
            if not found:
                raise DataError(f"imagefolder: the class folder {folder / name} holds no images")
            self.paths += found
            self.targets += [label] * len(found)
        if not self.paths:
            raise DataError(f"imagefolder: {folder} holds no class folders (DIR/class/image.png)")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``[3, size, size]``, normalised by ImageNet's mean and deviation, and label."""
        image = read_image(self._pillow, self.paths[index], "imagefolder")
        if self.transform is None:
            pixels = to_bytes(evaluation_crop(self._pillow, image, self.size))
        else:
            pixels = self.transform(to_bytes(image))
        return normalise(pixels, _IMAGENET_MEAN, _IMAGENET_STD), self.targets[index]


class TinyImageNet(Dataset):
    """Tiny-ImageNet as it is unpacked: 200 classes, images of 64 by 64 pixels.

    ``wnids.txt`` lists the classes; training images lie in ``train/CLASS/images``, the validation
    images all in ``val/images``, with their classes in ``val/val_annotations.txt``. Validation
    images that were sorted into ``val/CLASS`` are found, too.

    Source: Le and Yang, "Tiny ImageNet Visual Recognition Challenge", 2015.
    """

    def __init__(
        self, root: str | Path, *, train: bool = True, transform: Transform | None = None
    ) -> None:
        """Lists the images; they are read when asked for.

        Args:
            root: A folder that holds ``tiny-imagenet-200``, or is that folder.
            train: The training images, or else the validation images, the only other labelled ones.
            transform: Changes each image, bytes ``[3, 64, 64]``, before it is normalised.

        Raises:
            DataError: If a folder or file is missing, or names an unknown class or image.
            MissingPackageError: If pillow is not installed.
        """
        self._pillow = require("PIL.Image", "the data set tiny-imagenet", _EXTRA)
        self.transform = transform
        folder = Path(root)
        if (folder / _TINY_INNER).is_dir():
            folder = folder / _TINY_INNER
        names = _lines(folder / "wnids.txt")
        self.classes = sorted(line.strip() for line in names if line.strip())
        if train:
            entries = _sorted_into(folder / "train", self.classes)
        elif (folder / "val" / "val_annotations.txt").is_file():
            entries = _annotated(folder / "val", self.classes)
        else:
            entries = _sorted_into(folder / "val", self.classes, "val_annotations.txt")
        self.paths = [path for path, _ in entries]
        self.targets = [label for _, label in entries]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``[3, 64, 64]``, normalised by the data set's mean and deviation, and its label."""
        pixels = to_bytes(read_image(self._pillow, self.paths[index], "tiny-imagenet"))
        if self.transform is not None:
            pixels = self.transform(pixels)
        return normalise(pixels, _TINY_MEAN, _TINY_STD), self.targets[index]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"tiny-imagenet: no file {path}; expected the unpacked {_TINY_INNER}")
    return path.read_text(encoding="utf-8").splitlines()


def _sorted_into(
    folder: Path, classes: list[str], instead_of: str | None = None
) -> list[tuple[Path, int]]:
    """Images in one folder per class, each with the number of its class."""
    entries = []
    for label, name in enumerate(classes):
        found = _images_under(folder / name)
        if not found:
            wanted = f"{folder / instead_of}, or " if instead_of else ""
            raise DataError(f"tiny-imagenet: expected {wanted}images in {folder / name}")
        entries += [(path, label) for path in found]
    return entries


def _annotated(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Images of one folder, each with the number of the class that the list of them names."""
    path = folder / "val_annotations.txt"
    labels = {name: label for label, name in enumerate(classes)}
    entries = []
    for number, line in enumerate(_lines(path), start=1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0].strip()
        image = folder / "images" / file
        if name not in labels:
            raise DataError(
                f"tiny-imagenet: {path}, line {number}: expected IMAGE, a tab and a class of "
                f"wnids.txt, got {line!r}"
            )
        if not image.is_file():
            raise DataError(f"tiny-imagenet: {path}, line {number}: no image {image}")
        entries.append((image, labels[name]))
    if not entries:
        raise DataError(f"tiny-imagenet: {path} names no images")
    return entries


def _half(root: Path, train: bool) -> Path:
    """The folder of class folders for the wanted half."""
    if not root.is_dir():
        raise DataError(f"imagefolder: no folder {root}")
    names = ("train",) if train else ("val", "test")
    for name in names:
        if (root / name).is_dir():
            return root / name
    if train:
        return root
    raise DataError(f"imagefolder: {root} has no folder val or test to take the test half from")


def _images_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
