"""Masks survive ordinary training: any optimiser, momentum, weight decay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune

import pxfast
from pxfast.data import digits
from pxfast.training import accuracy, sgd, train_and_test

ROOT = Path(__file__).resolve().parent.parent

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-3, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=5e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, weight_decay=5e-3),
}


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def pruned_net(density: float = 0.3) -> tuple[nn.Module, pxfast.Masks]:
    model = small_net()
    images = pxfast.balanced_subset(digits(), per_class=1)
    masks = pxfast.prune(model, list(images_only(images)), density=density, rounds=3)
    return masks.apply_(model), masks


def images_only(subset):
    yield torch.stack([image for image, _ in subset])


def effective(model: nn.Module, name: str) -> torch.Tensor:
    """The weight that the forward uses."""
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def steps(model: nn.Module, optimiser: torch.optim.Optimizer, count: int) -> None:
    images, labels = digits().tensors
    model.train()
    for batch in torch.arange(len(labels)).split(64)[:count]:
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        model(images[:2])  # torch.nn.utils.prune sets the masked weight in the forward


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_ends_with_exactly_the_same_zeros(name):
    model, masks = pruned_net()
    before = {layer: effective(model, layer).detach().clone() for layer in masks}
    steps(model, OPTIMISERS[name](model.parameters()), 15)
    for layer, mask in masks.items():
        after = effective(model, layer)
        assert torch.equal(after != 0, mask), layer
        assert not torch.equal(after[mask], before[layer][mask]), f"{layer} did not train"
        torch_prune.remove(model.get_submodule(layer.rpartition(".")[0]), "weight")
    final = dict(model.named_parameters())
    assert all(torch.equal(final[layer] != 0, mask) for layer, mask in masks.items())


def test_masks_of_an_optimiser_with_a_past_hold_too():
    """Momentum gathered by the dense network does not bring a weight back."""
    model = small_net()
    parameters = dict(model.named_parameters())
    optimiser = OPTIMISERS["sgd"](model.parameters())
    steps(model, optimiser, 5)
    masks = pxfast.Scores({n: parameters[n].detach() for n in ("0.weight", "3.weight")}).masks(
        density=0.5
    )
    masks.apply_(model)
    steps(model, optimiser, 10)
    for layer, mask in masks.items():
        assert torch.equal(effective(model, layer) != 0, mask), layer


def test_zeros_written_in_place_do_not_survive_weight_training():
    """What the tests above would miss if applying masks only wrote zeros."""
    model = small_net()
    masks = pxfast.Scores({"0.weight": model[0].weight.detach().abs()}).masks(density=0.5)
    masks.apply_(model, in_place=True)
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    steps(model, OPTIMISERS["sgd"](model.parameters()), 5)
    assert not torch.equal(model[0].weight != 0, masks["0.weight"])


def test_the_training_loop_learns_and_repeats_itself():
    train_set, test_set = digits(train=True), digits(train=False)
    runs = []
    for _ in range(2):
        model = small_net()
        untrained = accuracy(model, test_set)
        runs.append(train_and_test(model, train_set, test_set, epochs=3, lr=0.1, seed=1))
        assert not model.training
    assert runs[0] == runs[1] == accuracy(model, test_set)
    assert runs[0] > untrained + 30  # percent; the net reaches about 80, chance is 10


@pytest.mark.parametrize(
    ("samples", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (8, [4, 4]), (1, [1])]
)
def test_a_last_batch_of_one_sample_is_left_out(samples, sizes):
    class Counting(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.append(len(x))
            return super().forward(x)

    seen = []
    data = torch.utils.data.TensorDataset(torch.rand(samples, 3), torch.arange(samples) % 2)
    train_and_test(Counting(3, 2), data, data, epochs=2, batch_size=4)
    assert seen == 2 * sizes


def example(*arguments: object) -> str:
    """What an example prints."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_keeps_its_zeros():
    printed = example(
        "examples/train_pruned.py", "--optimiser", "adamw", "--rounds", 2, "--epochs", 1
    )
    assert "exactly those that the masks removed" in printed


def test_the_demo_prunes_and_compares(tmp_path):
    printed = example("examples/demo.py", "--rounds", 3, "--epochs", 1, "--output", tmp_path)
    masks = pxfast.Masks.load(tmp_path / "masks.safetensors")
    assert masks.kept == round(0.02 * masks.total)
    assert (tmp_path / "densities.png").stat().st_size > 0
    table = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    kept, total = f"{masks.kept:,}", f"{masks.total:,}"
    assert (table["PX"][0], table["random"][0], table["dense"][0]) == (kept, kept, total)


@pytest.mark.parametrize(
    ("milestones", "expected"),
    [
        ([1, 2], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        (None, [0.1, 0.0933, 0.075, 0.05, 0.025, 0.0067]),
    ],
)
def test_the_learning_rate_falls_as_asked(milestones, expected):
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    data = torch.utils.data.TensorDataset(torch.rand(8, 3), torch.arange(8) % 2)
    train_and_test(
        nn.Linear(3, 2), data, data, epochs=3, lr=0.1, batch_size=4, milestones=milestones,
        optimiser=lambda parameters, lr: Watched(parameters, lr),
    )  # fmt: skip
    assert rates == pytest.approx(expected, rel=5e-3)


def test_sgd_is_torchs_with_momentum():
    group = sgd([nn.Parameter(torch.ones(1))], 0.2, weight_decay=1e-4, nesterov=True).param_groups[
        0
    ]
    wanted = {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    assert {name: group[name] for name in wanted} == wanted
