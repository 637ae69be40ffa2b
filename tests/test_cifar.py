from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from image_data import write_cifar, write_cifar100

from pxfast import balanced_subset
from pxfast.data import CIFAR10, load
from pxfast.errors import DataError


@pytest.mark.parametrize("inner", [True, False])
def test_cifar10_reads_the_original_layout(tmp_path, inner):
    folder = tmp_path / "cifar-10-batches-py"
    images = write_cifar(folder)
    spec = f"cifar10:{tmp_path if inner else folder}"
    train, test = load(spec), load(spec, train=False)
    assert (len(train), len(test)) == (20, 4)
    image, label = train[5]  # the second image of the second batch
    assert label == 1
    raw = torch.from_numpy(images["data_batch_2"][1]).view(3, 32, 32).double() / 255
    mean = torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616], dtype=torch.float64).view(3, 1, 1)
    assert torch.allclose(image.double(), (raw - mean) / std, atol=1e-5)
    assert torch.equal(test.images, torch.from_numpy(images["test_batch"]).view(-1, 3, 32, 32))


def test_cifar10_can_be_balanced_without_reading(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    subset = balanced_subset(load(f"cifar10:{tmp_path}"), per_class=5)
    assert sorted(label for _, label in subset) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_cifar10_never_runs_what_a_pickle_asks_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Bomb(), b"labels": []}))
    with pytest.raises(DataError, match="data_batch_3 is not a CIFAR-10 batch: it asks for"):
        load(f"cifar10:{tmp_path}")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no file .*data_batch_2"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "data_batch_2 is not a CIFAR-10"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), "data_batch_2 is not a CIFAR-10"),
        (
            lambda path: path.write_bytes(
                pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, protocol=2)
            ),
            "got 2 images of torch.uint8 and 1 labels",
        ),
    ],
)
def test_cifar10_damage_is_named(tmp_path, damage, message):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    damage(folder / "data_batch_2")
    with pytest.raises(DataError, match=message):
        load(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("inner", [True, False])
def test_cifar100_reads_fine_labels(tmp_path, inner):
    folder = tmp_path / "cifar-100-python"
    images = write_cifar100(folder, count=5)
    spec = f"cifar100:{tmp_path if inner else folder}"
    train, test = load(spec), load(spec, train=False)
    assert (len(train), len(test)) == (5, 5)
    assert train.targets.tolist() == [99, 98, 97, 96, 95]  # not the coarse ones
    image, label = test[2]
    assert label == 97
    raw = torch.from_numpy(images["test"][2]).view(3, 32, 32).double() / 255
    mean = torch.tensor([0.5071, 0.4865, 0.4409], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.2673, 0.2564, 0.2762], dtype=torch.float64).view(3, 1, 1)
    assert torch.allclose(image.double(), (raw - mean) / std, atol=1e-5)


def test_cifar100_says_what_it_expected(tmp_path):
    with pytest.raises(DataError, match=r"cifar100: no file .*train; .* unpacked cifar-100-python"):
        load(f"cifar100:{tmp_path}")
    write_cifar(tmp_path / "cifar-100-python")  # of the other data set
    (tmp_path / "cifar-100-python/data_batch_1").rename(tmp_path / "cifar-100-python/train")
    with pytest.raises(DataError, match="train is not a CIFAR-100 batch: b'fine_labels'"):
        load(f"cifar100:{tmp_path}")


def test_a_transform_changes_bytes_before_they_are_normalised(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    plain = CIFAR10(tmp_path)
    turned = CIFAR10(tmp_path, transform=lambda image: image.flip(2))
    assert torch.equal(turned[3][0], plain[3][0].flip(2)) and turned[3][1] == plain[3][1]
    seen = []
    CIFAR10(tmp_path, transform=lambda image: seen.append(image) or image)[0]
    assert seen[0].dtype == torch.uint8 and seen[0].shape == (3, 32, 32)
