"""Data sets by name, and the paper's pruning set.

Nothing is downloaded: the digits come with scikit-learn, everything else is read from a local
folder in the layout that torchvision uses.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from pxfast._optional import require
from pxfast.errors import DataError

DATA_NAMES = "digits, imagefolder:DIR, cifar10:DIR, random:CxHxW"

_EXTRA = "pxfast[demo]"
_DIGITS_MEAN, _DIGITS_STD = 0.3053, 0.3760
_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load(spec: str, *, train: bool = True, size: int | None = None) -> Dataset:
    """Opens the data set that a name stands for.

    Args:
        spec: ``"digits"``, ``"imagefolder:DIR"``, ``"cifar10:DIR"`` or ``"random:CxHxW"``
            (synthetic images of that shape, such as ``"random:3x224x224"``).
        train: The training half, or else the test half. Random images have no halves, an image
            folder has them if it contains ``train`` and ``val`` (or ``test``).
        size: Height and width in pixels of digits (default 8) and image folders (default 224).

    Returns:
        A map-style data set of ``(image, label)``, image ``[C, H, W]`` float32 and normalised.

    Raises:
        DataError: If the name is none of these, or the folder does not hold what it should.
        MissingPackageError: If scikit-learn, numpy or pillow is needed and not installed.
    """
    kind, _, argument = spec.partition(":")
    if kind == "digits" and not argument:
        return digits(train=train, size=8 if size is None else size)
    if kind == "imagefolder" and argument:
        return ImageFolder(argument, train=train, size=224 if size is None else size)
    if size is not None and kind in ("cifar10", "random"):
        raise DataError(f"data {spec!r}: size= applies to digits and imagefolder only, got {size}")
    if kind == "cifar10" and argument:
        return CIFAR10(argument, train=train)
    if kind == "random" and argument:
        return RandomImages(_parse_shape(spec, argument))
    raise DataError(f"data: expected one of {DATA_NAMES}, got {spec!r}")


def balanced_subset(dataset: Dataset, per_class: int = 10, seed: int = 0) -> Subset:
    """Draws the same number of samples from every class: the paper's pruning set.

    Labels are taken from ``dataset.tensors[1]`` or ``dataset.targets`` where these exist;
    otherwise every item is read once. The global random state is neither used nor changed.

    Source: Iurada et al., CVPR 2024, section 4.1 (10 samples per class).

    Args:
        dataset: A map-style data set of ``(input, label)`` items with integer labels.
        per_class: Samples of each class that occurs in the data set.
        seed: Chooses the samples and their order.

    Returns:
        A subset of ``classes * per_class`` samples in random order, ready for a ``DataLoader``.

    Raises:
        DataError: If the data set is empty, not map-style or without integer labels, or if a
            class has fewer than ``per_class`` samples (the class is named).

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(60) % 3
        >>> subset = balanced_subset(TensorDataset(torch.randn(60, 5), labels), per_class=4)
        >>> torch.bincount(labels[subset.indices]).tolist()
        [4, 4, 4]
    """
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise DataError(f"per_class must be an integer of at least 1, got {per_class!r}")
    labels = _labels(dataset)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise DataError(
                f"class {label.item()} has {len(members)} samples, fewer than "
                f"per_class={per_class}; lower per_class or add data"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    indices = torch.cat(chosen)
    indices = indices[torch.randperm(len(indices), generator=generator)]
    return Subset(dataset, indices.tolist())


def digits(
    *, train: bool = True, size: int = 8, seed: int = 0, test_fraction: float = 0.25
) -> TensorDataset:
    """The handwritten digits that come with scikit-learn: 1797 grey images of 8 by 8 pixels.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.

    Args:
        train: The training part, or else the test part.
        size: Height and width in pixels; other than 8, the images are interpolated (bilinear).
        seed: Of the split into training and test part; every class is split in proportion.
        test_fraction: Share of the images in the test part.

    Returns:
        Images ``[N, 1, size, size]`` float32, normalised to mean 0 and standard deviation 1
        before any interpolation, and labels ``[N]`` int64.

    Raises:
        DataError: If ``size`` is not a positive integer.
        MissingPackageError: If scikit-learn is not installed.
    """
    _check_size(size)
    datasets = require("sklearn.datasets", "the data set digits", _EXTRA)
    selection = require("sklearn.model_selection", "the data set digits", _EXTRA)
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    images = (images - _DIGITS_MEAN) / _DIGITS_STD
    if size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    parts = selection.train_test_split(
        range(len(labels)), test_size=test_fraction, stratify=labels.numpy(), random_state=seed
    )
    part = torch.tensor(parts[0] if train else parts[1])
    return TensorDataset(images[part], labels[part])


class CIFAR10(Dataset):
    """CIFAR-10 from a local folder that holds ``cifar-10-batches-py``, or is that folder.

    The batches are pickles; they are read by an unpickler that can build numpy arrays and
    nothing else, so a foreign file cannot run code.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    def __init__(self, root: str | Path, *, train: bool = True) -> None:
        """Reads the five training batches, or else the test batch.

        Args:
            root: The folder.
            train: The training part, or else the test part.

        Raises:
            DataError: If a batch is missing or damaged.
            MissingPackageError: If numpy is not installed.
        """
        require("numpy", "the data set cifar10", _EXTRA)
        folder = Path(root)
        if (folder / "cifar-10-batches-py").is_dir():
            folder = folder / "cifar-10-batches-py"
        names = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
        batches = [_read_cifar_batch(folder / name) for name in names]
        self.images = torch.cat([images for images, _ in batches])  # [N, 3, 32, 32] uint8
        self.targets = torch.cat([labels for _, labels in batches])  # [N] int64

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``[3, 32, 32]``, normalised by CIFAR-10's mean and deviation, and its label."""
        image = _normalise(self.images[index], _CIFAR10_MEAN, _CIFAR10_STD)
        return image, int(self.targets[index])


class ImageFolder(Dataset):
    """Images in one folder per class, torchvision's layout; classes in alphabetical order."""

    def __init__(self, root: str | Path, *, train: bool = True, size: int = 224) -> None:
        """Lists the images; they are read when asked for.

        Args:
            root: A folder of class folders, or a folder that holds such folders as ``train`` and
                ``val`` (or ``test``).
            train: Which of the two halves; without halves only True is possible.
            size: Height and width in pixels after the usual evaluation transform: the shorter
                side scaled to ``256/224 * size``, then the centre cut out.

        Raises:
            DataError: If a folder is missing or holds no images, or ``size`` is not positive.
            MissingPackageError: If pillow is not installed.
        """
        _check_size(size)
        self._pillow = require("PIL.Image", "the data set imagefolder", _EXTRA)
        self.size = size
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
        path = self.paths[index]
        try:
            with self._pillow.open(path) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise DataError(f"imagefolder: cannot read the image {path}: {error}") from error
        scale = round(self.size * 256 / 224) / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.resize((width, height), self._pillow.Resampling.BILINEAR)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(self.size, self.size, 3).permute(2, 0, 1)
        return _normalise(pixels, _IMAGENET_MEAN, _IMAGENET_STD), self.targets[index]


class RandomImages(Dataset):
    """Synthetic images: independent standard normal pixels, each image from its own seed."""

    def __init__(
        self, shape: Sequence[int], *, samples: int = 1000, classes: int = 10, seed: int = 0
    ) -> None:
        """Describes the images; each is drawn when asked for.

        Args:
            shape: Of one image, ``(C, H, W)``.
            samples: Number of images.
            classes: Number of labels, which repeat 0, 1, ..., classes - 1.
            seed: Of the first image.
        """
        self.shape = tuple(shape)
        self.seed = seed
        self.targets = [index % classes for index in range(samples)]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image of the given shape, and its label."""
        label = self.targets[index]  # raises IndexError past the end, which ends an iteration
        generator = torch.Generator().manual_seed(self.seed + index)
        return torch.randn(self.shape, generator=generator), label


def _labels(dataset: Dataset) -> Tensor:
    """Labels [N] of a map-style data set, without reading the inputs where possible."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"dataset must be map-style (with __len__ and __getitem__), "
            f"got {type(dataset).__name__}"
        )
    if len(dataset) == 0:  # pyright: ignore[reportArgumentType]
        raise DataError("dataset is empty")
    if isinstance(dataset, Subset):
        return _labels(dataset.dataset)[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return _integers(dataset.tensors[1])
    if hasattr(dataset, "targets") and getattr(dataset, "target_transform", None) is None:
        return _integers(dataset.targets)  # pyright: ignore[reportAttributeAccessIssue]
    return _integers([_label(dataset[i], i) for i in range(len(dataset))])  # pyright: ignore[reportArgumentType]


def _label(item: Any, index: int) -> Any:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise DataError(
            f"dataset items must be (input, label), item {index} is a {type(item).__name__}"
        )
    return item[1]


def _integers(labels: Iterable[Any]) -> Tensor:
    """Labels as int64 [N]; anything but one integer per sample is an error."""
    try:
        tensor = torch.as_tensor(labels if isinstance(labels, Tensor) else list(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"labels must be one integer per sample: {error}") from error
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise DataError(
            f"labels must be one integer per sample, got {tensor.dtype} of shape "
            f"{list(tensor.shape)}"
        )
    return tensor.long().cpu()


def _parse_shape(spec: str, text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise DataError(f"data {spec!r}: expected random:CxHxW such as random:3x224x224")
    return tuple(int(part) for part in parts)


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DataError(f"size must be a positive number of pixels, got {size!r}")


def _normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes [C, H, W] to float32 with the given mean and deviation of each channel."""
    shape = (-1, 1, 1)
    return (image.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


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
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays, and refuses every other object."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def _read_cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] uint8 and labels [N] of one CIFAR-10 batch file."""
    if not path.is_file():
        raise DataError(f"cifar10: no file {path}; expected the unpacked cifar-10-batches-py")
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = torch.from_numpy(batch[b"data"]).view(-1, 3, 32, 32)
        labels = _integers(batch[b"labels"])
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"cifar10: {path} is not a CIFAR-10 batch: {error}") from error
    if images.dtype != torch.uint8 or len(images) != len(labels):
        raise DataError(
            f"cifar10: {path}: expected one label per image of bytes, got {len(images)} images "
            f"of {images.dtype} and {len(labels)} labels"
        )
    return images, labels
