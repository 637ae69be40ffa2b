from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from integrations.lightning_nets import SETTINGS, Net, loader, pl, samples, trainer
from torch import nn

import pxfast
from pxfast.errors import DataError, MaskError, PxfastError
from pxfast.integrations import lightning as adapter
from pxfast.integrations.lightning import PXPruning

ROOT = Path(__file__).resolve().parent.parent.parent


def masks_of(model: nn.Module, data: object) -> pxfast.Masks:
    return pxfast.prune(model, data, **SETTINGS, progress=False)


def assert_pruned(model: nn.Module, masks: pxfast.Masks) -> None:
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert torch.all(weight[~mask] == 0), name
        assert torch.all(weight[mask] != 0), name


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert not any(parameter._backward_hooks for parameter in model.parameters())


class Steps(pl.Callback):
    """Looks at the weights after every step."""

    def __init__(self, pruning: PXPruning):
        self.pruning, self.count = pruning, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert_pruned(pl_module, self.pruning.masks)
        self.count += 1


class Fails(pl.Callback):
    """Raises when training begins, or after the first step."""

    def __init__(self, when: str):
        self.when = when

    def on_train_start(self, trainer, pl_module):
        if self.when == "start":
            raise RuntimeError("planned")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.when == "step":
            raise RuntimeError("planned")


@pytest.mark.parametrize("given", [True, False], ids=["data=", "the trainer's data"])
def test_masks_are_those_of_prune(given):
    expected = masks_of(Net(), list(loader()))
    pruning = PXPruning(**SETTINGS, data=loader() if given else None)
    model = Net()
    trainer(callbacks=[pruning]).fit(model, loader())
    assert pruning.masks == expected
    assert_pruned(model, expected)


def test_only_the_first_batches_are_scored():
    pruning = PXPruning(**SETTINGS, batches=1)
    trainer(callbacks=[pruning]).fit(Net(), loader())
    assert pruning.masks == masks_of(Net(), tuple(next(iter(loader()))))
    assert pruning.masks != masks_of(Net(), list(loader()))


def test_a_submodule_is_pruned_by_its_own_forward():
    pruning = PXPruning(**SETTINGS, module="backbone", data=loader())
    model = Net()
    trainer(callbacks=[pruning]).fit(model, loader())
    assert pruning.masks == masks_of(Net().backbone, loader())
    assert_pruned(model.backbone, pruning.masks)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "restless"])
def test_removed_weights_are_zero_after_every_step(optimizer):
    model = Net(optimizer)
    pruning = PXPruning(**SETTINGS)
    steps = Steps(pruning)
    trainer(callbacks=[pruning, steps], max_epochs=3).fit(model, loader())
    assert steps.count == 9


@pytest.mark.parametrize("clip", [None, 0.1])
def test_kept_weights_train_as_under_torch_nn_utils_prune(clip):
    masks = masks_of(Net(), loader())
    ours, theirs = Net(), masks.apply_(Net())
    trainer(callbacks=[PXPruning(masks=masks)], gradient_clip_val=clip).fit(ours, loader())
    trainer(gradient_clip_val=clip).fit(theirs, loader())
    for name, mask in masks.items():
        assert torch.equal(ours.get_parameter(name)[mask], getattr_path(theirs, name)[mask]), name


def getattr_path(model: nn.Module, name: str) -> torch.Tensor:
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), f"{attribute}_orig")


def test_a_checkpoint_brings_its_masks_and_nothing_is_scored_again(tmp_path, monkeypatch):
    pruning = PXPruning(**SETTINGS)
    first = trainer(callbacks=[pruning])
    first.fit(Net(), loader())
    file = tmp_path / "last.ckpt"
    first.save_checkpoint(file)
    saved = torch.load(file, weights_only=True)
    assert list(saved["state_dict"]) == list(Net().state_dict())

    monkeypatch.setattr(adapter, "prune", lambda *_, **__: pytest.fail("scored again"))
    resumed, model = PXPruning(**SETTINGS), Net()
    trainer(callbacks=[resumed, Steps(resumed)], max_epochs=3).fit(
        model, loader(), ckpt_path=file, weights_only=True
    )
    assert resumed.masks == pruning.masks
    assert_pruned(model, pruning.masks)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    whole, model = PXPruning(**SETTINGS), Net()
    trainer(callbacks=[whole], max_epochs=2).fit(model, loader())
    first = trainer(callbacks=[PXPruning(**SETTINGS)])
    first.fit(Net(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Net()
    trainer(callbacks=[PXPruning(**SETTINGS)], max_epochs=2).fit(
        resumed, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert_same(resumed, model.state_dict())


def test_the_model_is_untouched_where_scoring_raises():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    bad = [torch.full((2, 1, 6, 6), float("nan"))]
    with pytest.raises(DataError, match="NaN"):
        trainer(callbacks=[PXPruning(**SETTINGS, data=bad)]).fit(model, loader())
    assert_same(model, before)


def test_weights_come_back_where_fitting_raises_before_the_first_step():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    pruning = PXPruning(**SETTINGS)
    with pytest.raises(RuntimeError, match="planned"):
        trainer(callbacks=[pruning, Fails("start")]).fit(model, loader())
    assert_same(model, before)


def test_hooks_are_gone_where_fitting_raises_later():
    model = Net()
    pruning = PXPruning(**SETTINGS)
    fit = trainer(callbacks=[pruning, Fails("step")])
    with pytest.raises(RuntimeError, match="planned"):
        fit.fit(model, loader())
    assert_same(model, model.state_dict())
    assert_pruned(model, pruning.masks)
    assert not any(o._optimizer_step_post_hooks for o in fit.optimizers)


def test_two_ranks_score_the_union_of_their_data_and_hold_the_same_masks(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PL_TORCH_DISTRIBUTED_BACKEND": "gloo",
    }
    script = Path(__file__).with_name("lightning_nets.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert not torch.equal(ranks[0]["batch"], ranks[1]["batch"])
    for name, mask in ranks[0]["masks"].items():
        assert torch.equal(mask, ranks[1]["masks"][name]), name
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), name
        assert torch.all(ranks[0]["weights"][name][~mask] == 0), name
    assert pxfast.Masks(ranks[0]["masks"]) == masks_of(Net(), samples().tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of density=, sparsity= and masks="),
        ({"density": 0.1, "sparsity": 0.9}, "exactly one of"),
        ({"density": 0.1, "rouns": 3}, "has no option rouns"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(TypeError, match=message):
        PXPruning(**options)


def test_a_submodule_that_is_not_there_is_named():
    with pytest.raises(PxfastError, match="module='bone': Net has no such submodule; it has back"):
        trainer(callbacks=[PXPruning(density=0.5, module="bone")]).fit(Net(), loader())


def test_several_dataloaders_need_data():
    with pytest.raises(DataError, match="several training dataloaders; say what to score on"):
        trainer(callbacks=[PXPruning(density=0.5)]).fit(Net(), {"a": loader(), "b": loader()})


def test_strategies_that_split_weights_are_refused():
    split = SimpleNamespace(strategy=pl.strategies.FSDPStrategy())
    with pytest.raises(MaskError, match="got FSDPStrategy"):
        PXPruning(density=0.5).on_fit_start(split, Net())
