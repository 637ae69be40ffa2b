from __future__ import annotations

import pytest
import torch
from image_data import CLASSES, save_image, write_tiny_imagenet

from pxfast import balanced_subset
from pxfast.data import TinyImageNet, load
from pxfast.errors import DataError


def colour_of(image: torch.Tensor) -> tuple[float, ...]:
    """The colour in the middle of an image, in bytes."""
    mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    restored = image * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return tuple((255 * restored[:, 32, 32]).round().tolist())


def close(first, second) -> bool:
    """JPEG does not keep colours to the bit."""
    return all(abs(a - b) <= 4 for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_both_parts_have_the_labels_of_their_images(tmp_path, inner, train):
    folder = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(folder)
    data = load(f"tiny-imagenet:{tmp_path if inner else folder}", train=train)
    assert data.classes == ["n01", "n02"] and len(data) == 4
    assert sorted(data.targets) == [0, 0, 1, 1]
    for image, label in (data[index] for index in range(4)):
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32
        assert close(colour_of(image), CLASSES[data.classes[label]])


def test_validation_images_that_were_sorted_are_found(tmp_path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / "val/val_annotations.txt").unlink()
    save_image(tmp_path / "val/n01/a.JPEG", CLASSES["n01"], (64, 64))
    with pytest.raises(DataError, match=r"expected .*val_annotations.txt, or images in .*n02"):
        load(f"tiny-imagenet:{tmp_path}", train=False)
    save_image(tmp_path / "val/n02/b.JPEG", CLASSES["n02"], (64, 64))
    data = load(f"tiny-imagenet:{tmp_path}", train=False)
    assert data.targets == [0, 1] and close(colour_of(data[1][0]), CLASSES["n02"])


def test_it_can_be_balanced_without_reading(tmp_path, monkeypatch):
    write_tiny_imagenet(tmp_path, count=3)
    monkeypatch.setattr(TinyImageNet, "__getitem__", None)
    data = TinyImageNet(tmp_path)
    assert len(balanced_subset(data, per_class=2)) == 4


def test_a_transform_gets_bytes(tmp_path):
    write_tiny_imagenet(tmp_path)
    data = TinyImageNet(tmp_path, transform=lambda image: image[:, :32] + 0)
    assert data[0][0].shape == (3, 32, 64)


@pytest.mark.parametrize(
    ("damage", "train", "message"),
    [
        (lambda d: (d / "wnids.txt").unlink(), True, r"no file .*wnids.txt; .*tiny-imagenet-200"),
        (
            lambda d: (d / "wnids.txt").write_text("n01\nn02\nn03\n"),
            True,
            "expected images in .*train/n03",
        ),
        (
            lambda d: (d / "val/val_annotations.txt").write_text("val_0.JPEG n01\n"),
            False,
            "line 1: expected IMAGE, a tab and a class of wnids.txt, got 'val_0.JPEG n01'",
        ),
        (
            lambda d: (d / "val/val_annotations.txt").write_text("val_0.JPEG\tn09\t0\n"),
            False,
            "line 1: expected IMAGE, a tab and a class",
        ),
        (lambda d: (d / "val/images/val_1.JPEG").unlink(), False, "line 2: no image .*val_1.JPEG"),
        (lambda d: (d / "val/val_annotations.txt").write_text(""), False, "names no images"),
    ],
)
def test_what_is_missing_is_named(tmp_path, damage, train, message):
    write_tiny_imagenet(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        load(f"tiny-imagenet:{tmp_path}", train=train)


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / "train/n01/images/n01_0.JPEG").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"tiny-imagenet: cannot read the image .*n01_0.JPEG"):
        TinyImageNet(tmp_path)[0]
