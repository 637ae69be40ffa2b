from __future__ import annotations

import sys

import pytest
import torch
from image_data import save_image
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pxfast import balanced_subset
from pxfast.data import RandomImages, digits, load
from pxfast.errors import DataError, MissingPackageError


class Items(Dataset):
    """A data set of given labels, which counts how many items are read."""

    def __init__(self, labels):
        self.labels = labels
        self.reads = 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.reads += 1
        return torch.tensor(float(index)), self.labels[index]


class WithTargets(Items):
    def __init__(self, labels):
        super().__init__(labels)
        self.targets = labels


# ---- the digits


def test_digits_are_split_in_proportion_without_overlap():
    train, test = digits(train=True), digits(train=False)
    assert len(train) + len(test) == 1797
    both = torch.cat([train.tensors[1], test.tensors[1]]).bincount()
    shares = test.tensors[1].bincount() / both
    assert shares.shape == (10,)
    assert ((shares - 0.25).abs() < 1 / both.min()).all()
    # Every image is in exactly one part: together they are scikit-learn's, in another order.
    pixels = torch.cat([train.tensors[0], test.tensors[0]]).flatten(1)
    raw = sys.modules["sklearn.datasets"].load_digits().data
    restored = (pixels * 0.3760 + 0.3053).mul(16).round().int()
    assert sorted(map(tuple, restored.tolist())) == sorted(map(tuple, raw.astype(int).tolist()))


def test_digits_keep_their_labels():
    images, labels = digits(train=True).tensors
    bunch = sys.modules["sklearn.datasets"].load_digits()
    known = {tuple(row.astype(int)): label for row, label in zip(*bunch_pairs(bunch), strict=True)}
    rows = (images.flatten(1) * 0.3760 + 0.3053).mul(16).round().int().tolist()
    assert [known[tuple(row)] for row in rows] == labels.tolist()


def bunch_pairs(bunch):
    return bunch.data, bunch.target.tolist()


def test_digits_are_normalised():
    images = torch.cat([digits(train=True).tensors[0], digits(train=False).tensors[0]])
    assert images.dtype == torch.float32
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


@pytest.mark.parametrize("size", [8, 16, 32])
def test_digits_have_the_asked_size(size):
    images, labels = digits(size=size).tensors
    assert images.shape == (len(labels), 1, size, size)


def test_digits_are_interpolated_linearly():
    small, large = digits(size=8).tensors[0], digits(size=16).tensors[0]
    rows = 0.75 * small[:, :, :-1] + 0.25 * small[:, :, 1:]  # the lower neighbour of each pixel
    expected = 0.75 * rows[..., :-1] + 0.25 * rows[..., 1:]
    assert torch.allclose(large[:, :, 1:-1:2, 1:-1:2], expected, atol=1e-5)


def test_the_split_depends_on_the_seed_alone():
    assert torch.equal(digits(seed=3).tensors[0], digits(seed=3).tensors[0])
    assert not torch.equal(digits(seed=3).tensors[1], digits(seed=4).tensors[1])


@pytest.mark.parametrize("size", [0, -8, 2.5, True])
def test_a_size_that_makes_no_sense_is_refused(size):
    with pytest.raises(DataError, match=f"size must be a positive number of pixels, got {size}"):
        digits(size=size)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        MissingPackageError, match=r"digits needs sklearn.*pxfast\[demo\]"
    ) as caught:
        digits()
    assert "\n" not in str(caught.value)


# ---- the balanced subset


@pytest.mark.parametrize("kind", [Items, WithTargets, "tensors"])
def test_every_class_gives_the_same_number(kind):
    labels = [5, 0, 5, 0, 0, 9, 9, 9, 5, 5]
    dataset = (
        TensorDataset(torch.arange(10.0), torch.tensor(labels))
        if kind == "tensors"
        else kind(labels)
    )
    subset = balanced_subset(dataset, per_class=3)
    assert sorted(int(label) for _, label in subset) == [0, 0, 0, 5, 5, 5, 9, 9, 9]
    assert len(set(subset.indices)) == 9


def test_known_targets_are_used_without_reading_items():
    dataset = WithTargets([0, 1] * 20)
    balanced_subset(dataset, per_class=5)
    assert dataset.reads == 0


def test_targets_that_a_transform_changes_are_not_trusted():
    dataset = WithTargets([0, 1] * 20)
    dataset.labels = [0] * 40
    dataset.target_transform = lambda label: 0
    assert len(balanced_subset(dataset, per_class=5)) == 5


def test_a_subset_of_a_subset_keeps_labels_with_items():
    base = WithTargets([0, 0, 1, 1, 2, 2, 2])
    subset = balanced_subset(Subset(base, [6, 5, 2, 3]), per_class=2)
    assert sorted((int(x), label) for x, label in subset) == [(2, 1), (3, 1), (5, 2), (6, 2)]


def test_the_seed_chooses_samples_and_order():
    dataset = WithTargets([0, 1, 2] * 30)
    first = balanced_subset(dataset, 10, seed=1).indices
    assert first == balanced_subset(dataset, 10, seed=1).indices
    assert set(first) != set(balanced_subset(dataset, 10, seed=2).indices)
    assert [index % 3 for index in first] != sorted(index % 3 for index in first)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    balanced_subset(WithTargets([0, 1] * 20))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_class_with_too_few_samples_is_named():
    with pytest.raises(DataError, match="class 7 has 2 samples, fewer than per_class=3"):
        balanced_subset(WithTargets([3, 3, 3, 7, 7]), per_class=3)


@pytest.mark.parametrize("per_class", [0, -1, 1.5, True])
def test_per_class_must_be_a_positive_integer(per_class):
    with pytest.raises(DataError, match="per_class must be an integer of at least 1"):
        balanced_subset(WithTargets([0, 1]), per_class=per_class)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), 0


class Bare(Items):
    def __getitem__(self, index):
        return torch.zeros(1)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), "must be map-style .* got Stream"),
        (WithTargets([]), "dataset is empty"),
        (Bare([0]), r"items must be \(input, label\), item 0 is a Tensor"),
        (WithTargets([0.5, 1.5]), "one integer per sample"),
        (WithTargets(["cat", "dog"]), "one integer per sample"),
        (TensorDataset(torch.zeros(4, 2), torch.zeros(4, 3)), r"one integer per sample.*\[4, 3\]"),
    ],
)
def test_what_cannot_be_balanced_is_refused(dataset, message):
    with pytest.raises(DataError, match=message):
        balanced_subset(dataset, per_class=1)


# ---- image folders


def test_image_folder_labels_classes_alphabetically(tmp_path):
    save_image(tmp_path / "zebra/a.png", (255, 0, 0))
    save_image(tmp_path / "ant/b.png", (0, 255, 0))
    save_image(tmp_path / "ant/deep/c.JPEG", (0, 0, 255))
    (tmp_path / "ant/notes.txt").write_text("not an image")
    dataset = load(f"imagefolder:{tmp_path}", size=16)
    assert dataset.classes == ["ant", "zebra"]
    assert dataset.targets == [0, 0, 1]
    image, label = dataset[2]
    assert image.shape == (3, 16, 16)
    assert label == 1
    red = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert torch.allclose(image, torch.tensor(red).view(3, 1, 1).expand_as(image), atol=1e-6)
    assert len(list(dataset)) == 3  # iteration ends


def test_image_folder_cuts_out_the_centre(tmp_path):
    # Left third red, middle green, right blue: the square cut out of the middle is all green.
    picture = Image.new("RGB", (120, 40), (255, 0, 0))
    picture.paste((0, 255, 0), (40, 0, 80, 40))
    picture.paste((0, 0, 255), (80, 0, 120, 40))
    (tmp_path / "only").mkdir()
    picture.save(tmp_path / "only/wide.png")
    image, _ = load(f"imagefolder:{tmp_path}", size=28)[0]
    green = torch.tensor([-0.485 / 0.229, (1 - 0.456) / 0.224, -0.406 / 0.225])
    inner = image[:, :, 2:-2]
    assert torch.allclose(inner, green.view(3, 1, 1).expand_as(inner), atol=1e-6)


def test_image_folder_finds_its_halves(tmp_path):
    save_image(tmp_path / "train/a/1.png", (1, 1, 1))
    save_image(tmp_path / "train/a/2.png", (1, 1, 1))
    save_image(tmp_path / "val/a/3.png", (1, 1, 1))
    assert len(load(f"imagefolder:{tmp_path}")) == 2
    assert len(load(f"imagefolder:{tmp_path}", train=False)) == 1


def test_image_folder_without_test_half_says_so(tmp_path):
    save_image(tmp_path / "a/1.png", (1, 1, 1))
    with pytest.raises(DataError, match="no folder val or test"):
        load(f"imagefolder:{tmp_path}", train=False)


def test_image_folder_errors(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        load(f"imagefolder:{tmp_path}/nowhere")
    with pytest.raises(DataError, match="holds no class folders"):
        load(f"imagefolder:{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        load(f"imagefolder:{tmp_path}")
    (tmp_path / "empty/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    dataset = load(f"imagefolder:{tmp_path}")
    with pytest.raises(DataError, match=r"cannot read the image .*broken\.png"):
        dataset[0]


# ---- random images, and names


def test_random_images_come_from_their_seed():
    dataset = load("random:2x3x5")
    image, label = dataset[13]
    assert image.shape == (2, 3, 5)
    assert label == 3
    assert torch.equal(image, load("random:2x3x5")[13][0])
    assert not torch.equal(image, dataset[14][0])
    assert not torch.equal(image, RandomImages((2, 3, 5), seed=1)[13][0])
    assert len(balanced_subset(dataset, per_class=100)) == 1000


@pytest.mark.parametrize(
    "spec", ["", "mnist", "digits:8", "imagefolder:", "cifar10", "random", "imagefolder"]
)
def test_unknown_names_list_the_known_ones(spec):
    with pytest.raises(DataError, match="expected one of digits, imagefolder:DIR, cifar10:DIR"):
        load(spec)


@pytest.mark.parametrize("shape", ["3x224", "3x0x5", "axbxc", "3x-1x5", "1x2x3x4"])
def test_shapes_of_random_images_are_checked(shape):
    with pytest.raises(DataError, match="expected random:CxHxW"):
        load(f"random:{shape}")


def test_size_is_refused_where_it_means_nothing():
    with pytest.raises(DataError, match="size= applies to digits and imagefolder only, got 8"):
        load("random:3x8x8", size=8)
