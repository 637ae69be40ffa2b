"""Data sets by name, and the paper's pruning set.

Nothing is downloaded: the digits come with scikit-learn, everything else is read from a local
folder in the layout that torchvision uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from pxfast._optional import require
from pxfast.cifar import CIFAR10, CIFAR100
from pxfast.errors import DataError
from pxfast.image_folders import ImageFolder, TinyImageNet
from pxfast.images import check_size
from pxfast.suggest import did_you_mean

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DATA_NAMES",
    "ImageFolder",
    "RandomImages",
    "TinyImageNet",
    "balanced_subset",
    "digits",
    "load",
]

DATA_NAMES = "digits, imagefolder:DIR, cifar10:DIR, cifar100:DIR, tiny-imagenet:DIR, random:CxHxW"

_EXTRA = "pxfast[demo]"
_DIGITS_MEAN, _DIGITS_STD = 0.3053, 0.3760


def load(spec: str, *, train: bool = True, size: int | None = None) -> Dataset:
    """Opens the data set that a name stands for.

    Args:
        spec: ``"digits"``, ``"imagefolder:DIR"``, ``"cifar10:DIR"``, ``"cifar100:DIR"``,
            ``"tiny-imagenet:DIR"`` or ``"random:CxHxW"`` (synthetic images of that shape, such as
            ``"random:3x224x224"``).
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
    folders = {"cifar10": CIFAR10, "cifar100": CIFAR100, "tiny-imagenet": TinyImageNet}
    if size is not None and kind in (*folders, "random"):
        raise DataError(f"data {spec!r}: size= applies to digits and imagefolder only, got {size}")
    if kind in folders and argument:
        return folders[kind](argument, train=train)
    if kind == "random" and argument:
        return RandomImages(_parse_shape(spec, argument))
    meant = did_you_mean(spec, DATA_NAMES.split(", "))
    raise DataError(f"data: expected one of {DATA_NAMES}, got {spec!r}{meant}")


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
    check_size(size)
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
