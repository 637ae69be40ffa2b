"""Random number generators are put back where they were."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from pxfast.errors import DataError
from pxfast.rng import RngState, own_generators, preserved_rng


class Noisy(Dataset):
    """A data set with generators of its own, one inside a transform."""

    def __init__(self) -> None:
        self.numpy = np.random.default_rng(1)
        self.legacy = np.random.RandomState(2)
        self.transform = Noise()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index):
        drawn = self.numpy.normal() + self.legacy.normal() + self.transform(index)
        return torch.tensor([float(index), drawn, random.random(), np.random.rand()])


class Noise:
    def __init__(self) -> None:
        self.python = random.Random(3)

    def __call__(self, index):
        return self.python.random()


def loaders():
    data = TensorDataset(torch.arange(8.0))
    generator = torch.Generator().manual_seed(5)
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(6))
    return {
        "none": None,
        "shuffled": DataLoader(data, shuffle=True),
        "own generator": DataLoader(data, shuffle=True, generator=generator),
        "sampler": DataLoader(data, sampler=sampler),
        "noisy": DataLoader(Noisy(), shuffle=True),
    }


def draws(data) -> list[float]:
    values = [float(torch.rand(())), float(np.random.rand()), random.random(), random.gauss(0, 1)]
    values += [np.random.normal()]
    if data is not None:
        values += torch.cat([torch.as_tensor(batch[0]).flatten() for batch in data]).tolist()
    return values


@pytest.mark.parametrize("name", loaders())
def test_draws_repeat(name):
    data = loaders()[name]
    draws(data)
    with preserved_rng(data):
        first = draws(data)
    with pytest.raises(KeyboardInterrupt), preserved_rng(data):
        draws(data)
        raise KeyboardInterrupt
    assert draws(data) == first
    assert draws(data) != first


@pytest.mark.parametrize("name", loaders())
def test_states_survive_json(name):
    """A checkpoint puts the generators of a new process where the old one's were."""
    data = loaders()[name]
    draws(data)
    text = json.dumps(RngState.capture(data).to_json())
    first = draws(data)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    fresh = loaders()[name]
    RngState.from_json(json.loads(text)).restore(fresh)
    assert draws(fresh) == first


def test_capturing_draws_nothing():
    torch.manual_seed(0)
    RngState.capture()
    first = torch.rand(())
    torch.manual_seed(0)
    assert torch.equal(torch.rand(()), first)


def test_each_generator_is_found_once():
    generator = torch.Generator()
    data = DataLoader(TensorDataset(torch.ones(3)), shuffle=True, generator=generator)
    assert own_generators(data) == [generator]
    assert len(own_generators(DataLoader(Noisy()))) == 3
    assert own_generators([torch.ones(2)]) == []
    assert own_generators(None) == []


def test_data_with_other_generators():
    state = RngState.capture(DataLoader(Noisy()))
    with pytest.raises(DataError, match=r"hold 0 random generators .* with 3"):
        state.restore(torch.ones(2))
