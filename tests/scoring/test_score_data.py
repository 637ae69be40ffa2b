"""What score() takes from data: every form and split of it, and where it cancels."""

from __future__ import annotations

import nets
import pytest
import torch
from scored import CRITERIA, assert_bit_equal, assert_same
from tolerances import DEEP_NET, SMALL_NET
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pxfast
from pxfast.errors import DataError
from pxfast.paths.network import Network
from pxfast.paths.passes import Passes

F32 = torch.float32


@pytest.mark.parametrize("criterion", CRITERIA)
def test_any_split_of_the_data_gives_the_same_scores(criterion):
    model, x = nets.residual(seed=3), nets.random_batch((1, 4, 4), 7)
    masks = nets.random_masks(model, 0.6)
    whole = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert whole.provenance["data_pass"] == "run"
    for split in ([1] * 7, [3, 4], [5, 2]):
        parts = list(x.split(split))
        assert_same(
            pxfast.score(model, parts, criterion=criterion, masks=masks), whole, SMALL_NET[F32]
        )
    twice = pxfast.score(model, [x, x], criterion=criterion, masks=masks)
    assert_same(twice, whole, SMALL_NET[F32])
    small = pxfast.score(model, x, criterion=criterion, masks=masks, max_memory=2000)
    assert_same(small, whole, SMALL_NET[F32])


def test_max_memory_bounds_what_path_tensors_hold(monkeypatch):
    sizes = []
    tensor = Network.tensor

    def spy(self, value, path):
        sizes.append(value.shape[0])
        return tensor(self, value, path)

    monkeypatch.setattr(Network, "tensor", spy)
    model, x = nets.residual(seed=3), nets.random_batch((1, 4, 4), 7)
    pxfast.score(model, x, criterion="px-joint", max_memory=2000)
    assert 1 <= max(sizes) < 7


def test_the_data_cancels_where_the_last_layer_is_whole(resnet, images):
    masks = nets.random_masks(resnet, 0.5)
    del masks["fc.weight"]
    skipped = pxfast.score(resnet, images, masks=masks)
    assert skipped.provenance["data_pass"].startswith("skipped")
    other = pxfast.score(resnet, torch.randn_like(images), masks=masks)
    assert_bit_equal(other, skipped)
    masks["fc.weight"] = torch.ones_like(resnet.fc.weight)
    assert pxfast.score(resnet, images, masks=masks).provenance["data_pass"] != "run"
    masks["fc.weight"][0, 0] = 0
    assert pxfast.score(resnet, images, masks=masks).provenance["data_pass"] == "run"


def test_a_skipped_data_pass_changes_nothing(resnet, images, monkeypatch):
    skipped = pxfast.score(resnet, images)
    monkeypatch.setattr(Passes, "data_cancels", lambda self, batch: False)
    run = pxfast.score(resnet, images)
    assert run.provenance["data_pass"] == "run"
    assert_same(run, skipped, DEEP_NET[F32])


def test_dense_predictions_depend_on_the_position():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
    scores = pxfast.score(model, torch.randn(2, 1, 6, 6))
    assert scores.provenance["data_pass"] == "run"


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, pixels, scale=None):
        hidden = torch.relu(self.a(pixels))
        return {"logits": self.b(hidden), "hidden": hidden}


def test_every_form_of_data():
    model, x, y = Keywords(), torch.randn(6, 4), torch.arange(6) % 2
    masks = {"b.weight": torch.tensor([[1, 0, 1], [1, 1, 0]])}
    expected = pxfast.score(model, x, masks=masks)
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    forms = [
        (x, y),
        [x],
        [(x[:3], y[:3]), (x[3:], y[3:])],
        {"pixels": x, "labels": y},
        [{"pixels": x[:2]}, {"pixels": x[2:]}],
        loader,
        iter([x]),
    ]
    for data in forms:
        assert_same(pxfast.score(model, data, masks=masks), expected, SMALL_NET[F32])
    assert expected.provenance["samples"] == 6
    assert pxfast.score(model, loader).provenance["samples"] == 6


def test_output_selects_what_counts():
    model, x = Keywords(), torch.randn(6, 4)
    with pytest.warns(UserWarning, match=r"never uses.*b\.weight"):
        hidden = pxfast.score(model, x, output="hidden")
    assert list(hidden) == ["a.weight"] and hidden.provenance["unused"] == ["b.weight"]
    assert list(pxfast.score(model, x, output=lambda result: result["logits"])) == [
        "a.weight",
        "b.weight",
    ]
    with pytest.raises(DataError, match=r"output='nothing' selects nothing.*logits"):
        pxfast.score(model, x, output="nothing")
