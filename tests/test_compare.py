"""compare() and its training."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from dataclasses import replace

import nets
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pxfast
from pxfast.compare import Comparison, Entry, InterruptedComparison, compare, jaccard, plot
from pxfast.training import accuracy, train_and_test


def batch(shape=(1, 4, 4)):
    return nets.random_batch(shape, 6), torch.arange(6) % 3


# ---- compare()


def test_masks_are_those_of_prune():
    model, data = nets.batchnorm(), [batch()]
    names = ("snip", "px", "random", pxfast.criteria.GraSP(temperature=1))
    found = compare(model, data, density=0.4, criteria=names, rounds=2)
    assert [entry.criterion for entry in found.entries] == ["snip", "px", "random", "grasp"]
    for entry, criterion in zip(found.entries, names, strict=True):
        expected = pxfast.prune(model, data, density=0.4, criterion=criterion, rounds=2)
        assert entry.masks == expected
        assert entry.rounds == 2 and entry.seconds > 0 and entry.error is None
        assert entry.overlap == jaccard(expected, found.entries[1].masks)
        assert entry.densities == {layer.name: layer.density for layer in expected.layers}
    assert (found.density, found.reference, found.weights) == (0.4, "px", 44)
    assert found.entries[1].overlap == 1


def test_rounds_are_those_of_the_papers():
    data = batch((4,))
    found = compare(nets.mlp(), data, sparsity=0.5, criteria=["synflow", "snip", "magnitude"])
    assert [entry.rounds for entry in found.entries] == [100, 1, 1]
    assert found.reference == "synflow"
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        compare(nets.mlp(), data, density=0.5, rounds=0)


def test_jaccard_by_hand():
    a = {"w": torch.tensor([True, True, False, False]), "v": torch.tensor([True])}
    b = {"w": torch.tensor([True, False, True, False]), "v": torch.tensor([True])}
    assert jaccard(a, b) == 2 / 4
    assert jaccard(a, a) == 1


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.unused, self.head = nn.Linear(4, 5), nn.Linear(5, 9), nn.Linear(5, 3)

    def forward(self, x):
        return {"scores": self.head(self.body(x).relu()), "other": x}


def test_all_compete_for_the_weights_that_the_output_uses():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(
            TwoHeads(), batch((4,)), density=0.5, rounds=1, output="scores", exclude="head.bias",
            criteria=["magnitude", "random", "snip", "px"],
        )  # fmt: skip
    for entry in found.entries:
        assert list(entry.masks) == ["body.weight", "head.weight"]
        assert entry.masks.kept == 18
    assert found.weights == 35


def test_options_reach_the_criteria_that_take_them():
    model, data = nets.batchnorm(), batch()
    arguments = {"density": 0.4, "rounds": 1, "scope": "layer"}
    found = compare(model, data, criteria=["px-joint", "magnitude"], batchnorm="data", **arguments)
    for entry, options in zip(found.entries, ({"batchnorm": "data"}, {}), strict=True):
        expected = pxfast.prune(model, data, criterion=entry.criterion, **options, **arguments)
        assert entry.masks == expected
        assert entry.masks.provenance["scope"] == "layer"


def test_a_failure_is_an_entry():
    class Failing:
        name = "failing"

        def score(self, model, data, *, masks, include):
            raise pxfast.errors.RangeError("out of range")

    found = compare(nets.mlp(), batch((4,)), density=0.5, criteria=[Failing(), "px"], rounds=2)
    failed, worked = found.entries
    assert failed.masks is None and "out of range" in failed.error
    assert worked.masks is not None and found.reference == "px"
    assert "failing failed: " in found.table()
    assert json.loads(found.to_json())["criteria"][0]["error"] == failed.error
    with pytest.raises(pxfast.errors.RangeError, match="out of range"):
        compare(nets.mlp(), batch((4,)), density=0.5, criteria=[Failing()])


def test_arguments_are_checked_before_the_work():
    model, data = nets.mlp(), batch((4,))
    for arguments, message in (
        ({"density": 2}, r"density must be in \(0, 1\]"),
        ({}, "exactly one of density"),
        ({"density": 0.5, "criteria": ["snap"]}, "expected one of px.*did you mean snip"),
        ({"density": 0.5, "criteria": []}, "at least one"),
        ({"density": 0.5, "include": "head"}, "matches no weight"),
        ({"density": 1e-9}, "rounds to no weight"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(model, data, **arguments)


def test_training_sees_every_masked_copy_and_the_dense_model():
    model, data = nets.batchnorm(), batch()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []

    def train(masked):
        weights = [masked[0].weight, masked[3].weight, masked[8].weight, masked[11].weight]
        seen.append(sum(int(weight.count_nonzero()) for weight in weights))
        with torch.no_grad():
            masked[0].weight.zero_()
        return 10.0 * len(seen)

    found = compare(
        model, data, density=0.5, criteria=["px", "random"], rounds=1, train=train, progress=True
    )
    assert seen == [22, 22, 44]
    assert [entry.accuracy for entry in found.entries] == [10.0, 20.0]
    assert found.dense_accuracy == 30.0
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Interrupting(pxfast.criteria.Random):
    """A criterion during whose score Ctrl-C is pressed."""

    def score(self, *_, **__):
        raise KeyboardInterrupt


def test_an_interruption_carries_what_is_finished():
    model, data = nets.mlp(), batch((4,))
    chosen = ["magnitude", "px", Interrupting(), "snip"]
    with pytest.raises(InterruptedComparison) as caught:
        compare(model, data, density=0.5, criteria=chosen, rounds=1)
    found = caught.value.comparison
    whole = compare(model, data, density=0.5, criteria=["magnitude", "px"], rounds=1)
    assert [entry.criterion for entry in found.entries] == ["magnitude", "px"]
    for entry, expected in zip(found.entries, whole.entries, strict=True):
        assert (entry.masks, entry.overlap) == (expected.masks, expected.overlap)
    assert found.reference == "px" and "accuracy" not in found.table()
    with pytest.raises(KeyboardInterrupt) as nothing:
        compare(model, data, density=0.5, criteria=[Interrupting()], rounds=1)
    assert not isinstance(nothing.value, InterruptedComparison)


def test_an_interrupted_training_keeps_the_accuracies_before_it():
    accuracies = iter([70.0, KeyboardInterrupt()])

    def train(model):
        accuracy = next(accuracies)
        if isinstance(accuracy, KeyboardInterrupt):
            raise accuracy
        return accuracy

    with pytest.raises(InterruptedComparison) as caught:
        compare(
            nets.mlp(), batch((4,)), density=0.5, criteria=["px", "random"], rounds=1, train=train
        )
    found = caught.value.comparison
    assert [entry.accuracy for entry in found.entries] == [70.0, None]
    assert found.dense_accuracy is None
    lines = found.table().splitlines()
    assert lines[0].endswith("accuracy") and lines[2].endswith("70.0%")
    assert "dense" not in found.table() and json.loads(found.to_json())


def test_the_bar_counts_every_round(capsys):
    compare(nets.mlp(), batch((4,)), density=0.5, criteria=["px", "snip"], rounds=3, progress=True)
    shown = capsys.readouterr().err
    assert "6/6" in shown and "snip" in shown
    compare(nets.mlp(), batch((4,)), density=0.5, criteria=["snip"], rounds=1, progress=False)
    assert capsys.readouterr().err == ""


def test_models_are_copied_only_to_train(monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", None)
    found = compare(nets.mlp(), batch((4,)), density=0.5, criteria=["px"], rounds=1)
    assert found.entries[0].masks is not None


# ---- table, JSON, picture


def comparison(layers=3):
    def masks(kept):
        names = [f"stage{index // 6}.block{index % 6}.weight" for index in range(layers)]
        return pxfast.Masks(
            {name: torch.arange(100) < kept * (i % 9) for i, name in enumerate(names)}
        )

    entries = (
        Entry("px", 100, 1.25, masks(5), 1.0, 91.26),
        Entry("snip", 1, 0.5, masks(3), 0.6, 80.0),
        Entry("grasp", 1, 0.5, error="no labels"),
    )
    return Comparison(entries, 0.05, "px", 300, 95.0)


def test_the_table():
    lines = comparison().table().splitlines()
    assert lines[0].split() == [
        *("criterion", "rounds", "seconds", "density", "empty", "layers", "lowest", "layer"),
        *("median", "layer", "overlap", "px", "accuracy"),
    ]
    assert lines[2].split() == _cells("px 100 1.25 5.000% 1 of 3 0% 5% 100.0% 91.3%")
    assert lines[3].split() == _cells("snip 1 0.50 3.000% 1 of 3 0% 3% 60.0% 80.0%")
    assert lines[4].split() == ["dense", "95.0%"]
    assert lines[5:] == ["grasp failed: no labels"]
    entries = tuple(replace(entry, accuracy=None) for entry in comparison().entries)
    untrained = Comparison(entries, 0.05, "px", 300).table()
    assert "accuracy" not in untrained and "dense" not in untrained


def _cells(line):
    return line.split()


def test_json_says_everything():
    facts = json.loads(comparison().to_json())
    assert (facts["density"], facts["reference"], facts["dense_accuracy"]) == (0.05, "px", 95.0)
    first, second, third = facts["criteria"]
    assert first["layer_densities"] == {
        "stage0.block0.weight": 0.0,
        "stage0.block1.weight": 0.05,
        "stage0.block2.weight": 0.1,
    }
    assert first["empty_layers"] == ["stage0.block0.weight"]
    assert (first["lowest_layer_density"], first["median_layer_density"]) == (0.0, 0.05)
    assert (second["overlap"], second["accuracy"], second["seconds"]) == (0.6, 80.0, 0.5)
    assert (third["error"], third["density"], third["layer_densities"]) == ("no labels", None, {})


@pytest.mark.parametrize("layers", [3, 300])
def test_the_picture_names_criteria_and_marks_empty_layers(tmp_path, layers):
    found = comparison(layers)
    path = tmp_path / "densities.svg"
    plot(found, path)
    text = path.read_text()
    for said in ("px", "snip", "marks empty layers"):
        assert f"<!-- {said}" in text or said in text
    assert "grasp" not in text
    assert text.count("stage") <= 2 * 41


# ---- training


def classes(samples, seed):
    """Three classes that a linear layer can tell apart."""
    labels = torch.arange(samples) % 3
    noise = torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(3 * nn.functional.one_hot(labels, 4) + noise, labels)


def test_training_learns_keeps_zeros_and_is_seeded():
    data, test = classes(70, 0), classes(60, 1)
    net = functools.partial(nets.mlp, sizes=(4, 32, 3))
    masks = pxfast.Masks(nets.random_masks(net(), 0.6))
    model = masks.apply_(net())
    again = masks.apply_(net())
    before = accuracy(model, test)
    rng = torch.get_rng_state()
    arguments = {"epochs": 20, "batch_size": 16, "lr": 0.1}
    found = train_and_test(model, data, test, seed=3, **arguments)
    assert before < 60 and found > 85
    assert torch.equal(torch.get_rng_state(), rng)
    for name, mask in masks.items():
        assert not model.get_submodule(name.removesuffix(".weight")).weight[~mask].any()
    torch.manual_seed(99)
    assert train_and_test(again, data, test, seed=3, **arguments) == found
    assert torch.equal(model[0].weight, again[0].weight)
    other = masks.apply_(net())
    train_and_test(other, data, test, seed=4, **arguments)
    assert not torch.equal(model[0].weight, other[0].weight)


def test_training_draws_its_dropout_from_the_seed():
    data = classes(30, 0)
    models = [nn.Sequential(nets.mlp(), nn.Dropout()) for _ in range(2)]
    for outer, model in enumerate(models):
        torch.manual_seed(outer)
        train_and_test(model, data, data, epochs=1, batch_size=8, seed=5)
    assert torch.equal(models[0][0][0].weight, models[1][0][0].weight)


def test_accuracy_by_hand():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            assert not self.training
            return {"other": -x, "scores": x}

    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]])
    test = TensorDataset(logits, torch.tensor([0, 1, 0]))
    assert accuracy(Fixed().train(), test, batch_size=2, output="scores") == 100 * 2 / 3
