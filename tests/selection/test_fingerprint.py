"""Fingerprints tell models and data apart, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pxfast.errors import DataError
from pxfast.selection.fingerprint import data_fingerprint, masks_fingerprint, model_fingerprint


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def test_the_same_numbers_give_the_same_fingerprint():
    assert model_fingerprint(net()) == model_fingerprint(net())
    assert len(model_fingerprint(net())) == 32


def test_modes_gradients_layout_and_wrappers_do_not_count():
    model = net().eval().to(memory_format=torch.channels_last).requires_grad_(False)
    assert model_fingerprint(model) == model_fingerprint(net())
    assert model_fingerprint(nn.DataParallel(net())) == model_fingerprint(net())


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.running_var"])
def test_one_bit_of_any_tensor_counts(name):
    model = net()
    value = model.state_dict()[name].flatten()
    value[-1] = torch.nextafter(value[-1], torch.tensor(torch.inf))
    assert model_fingerprint(model) != model_fingerprint(net())


def test_names_shapes_and_dtypes_count():
    zeros = [
        nn.Linear(2, 3, bias=False),
        nn.Linear(3, 2, bias=False),
        nn.Sequential(nn.Linear(2, 3, bias=False)),
        nn.Linear(2, 3, bias=False).half(),
    ]
    for model in zeros:
        nn.init.zeros_(next(model.parameters()))
    assert len({model_fingerprint(model) for model in zeros}) == 4


X = torch.arange(24.0).view(6, 4)


def test_data_fingerprints_differ_where_data_do():
    other = X.clone()
    other[0, 0] = 1
    batches = [
        X, other, X.view(4, 6), X.double(), (X, torch.zeros(6)), {"pixels": X}, {"x": X}, [X],
        [X, X], [X[:3], X[3:]], DataLoader(TensorDataset(X), batch_size=2),
        DataLoader(TensorDataset(X), batch_size=3),
        DataLoader(TensorDataset(X[:4]), batch_size=2), [],
    ]  # fmt: skip
    fingerprints = [data_fingerprint(data) for data in batches]
    assert len(set(fingerprints)) == len(batches)
    assert fingerprints == [data_fingerprint(data) for data in batches]


def test_loaders_without_a_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(X)

    assert data_fingerprint(DataLoader(Stream())) == data_fingerprint(DataLoader(Stream()))


def test_data_of_no_kind():
    with pytest.raises(DataError, match="got int"):
        data_fingerprint(5)


def test_masks_fingerprint():
    masks = {"a": torch.tensor([True, False])}
    assert masks_fingerprint(masks) == masks_fingerprint({"a": masks["a"].clone()})
    others = [{}, {"b": masks["a"]}, {"a": ~masks["a"]}]
    assert masks_fingerprint(masks) not in map(masks_fingerprint, others)
