"""CIFAR-10 and CIFAR-100 from a local folder, in the layout of the python archives.

The batches are pickles; they are read by an unpickler that can build numpy arrays and nothing
else, so a foreign file cannot run code.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pxfast._optional import require
from pxfast.errors import DataError
from pxfast.images import Transform, normalise


class CIFAR10(Dataset):
    """CIFAR-10 from a folder that holds ``cifar-10-batches-py``, or is that folder.

    That is what the unpacked ``cifar-10-python.tar.gz`` holds, and where torchvision puts it.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    name: ClassVar[str] = "cifar10"
    inner: ClassVar[str] = "cifar-10-batches-py"
    train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{k}" for k in range(1, 6))
    test_files: ClassVar[tuple[str, ...]] = ("test_batch",)
    labels: ClassVar[bytes] = b"labels"
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    def __init__(
        self, root: str | Path, *, train: bool = True, transform: Transform | None = None
    ) -> None:
        """Reads the files of the training part, or else of the test part.

        Args:
            root: The folder.
            train: The training part, or else the test part.
            transform: Changes each image, bytes ``[3, 32, 32]``, before it is normalised.

        Raises:
            DataError: If a file is missing or damaged.
            MissingPackageError: If numpy is not installed.
        """
        require("numpy", f"the data set {self.name}", "pxfast[demo]")
        folder = Path(root)
        if (folder / self.inner).is_dir():
            folder = folder / self.inner
        names = self.train_files if train else self.test_files
        batches = [self._read(folder / name) for name in names]
        self.images = torch.cat([images for images, _ in batches])  # [N, 3, 32, 32] uint8
        self.targets = torch.cat([labels for _, labels in batches])  # [N] int64
        self.transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``[3, 32, 32]``, normalised by the data set's mean and deviation, and its label."""
        image = self.images[index]
        if self.transform is not None:
            image = self.transform(image)
        return normalise(image, self.mean, self.std), int(self.targets[index])

    def _read(self, path: Path) -> tuple[Tensor, Tensor]:
        """Images [N, 3, 32, 32] uint8 and labels [N] int64 of one file."""
        kind = self.name.upper().replace("CIFAR", "CIFAR-")
        if not path.is_file():
            raise DataError(f"{self.name}: no file {path}; expected the unpacked {self.inner}")
        try:
            batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
            images = torch.from_numpy(batch[b"data"]).view(-1, 3, 32, 32)
            labels = torch.tensor([int(label) for label in batch[self.labels]], dtype=torch.int64)
        except Exception as error:  # a damaged pickle can raise anything
            raise DataError(f"{self.name}: {path} is not a {kind} batch: {error}") from error
        if images.dtype != torch.uint8 or len(images) != len(labels):
            raise DataError(
                f"{self.name}: {path}: expected one label per image of bytes, got {len(images)} "
                f"images of {images.dtype} and {len(labels)} labels"
            )
        return images, labels


class CIFAR100(CIFAR10):
    """CIFAR-100 with its 100 fine labels, from a folder that holds, or is, ``cifar-100-python``."""

    name = "cifar100"
    inner = "cifar-100-python"
    train_files = ("train",)
    test_files = ("test",)
    labels = b"fine_labels"
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)


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
