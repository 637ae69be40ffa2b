"""prune(): the rounds, what they report, and a model that stays as it is."""

from __future__ import annotations

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from magnitude import BATCH, Magnitude, kept, net
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, TensorDataset

import pxfast
from pxfast.errors import DataError, MaskError
from pxfast.scoring import Scorer

# ---- the rounds ----


@pytest.mark.filterwarnings("ignore:round .* left no weight")
def test_every_round_keeps_the_papers_number_exactly():
    criterion = Magnitude()
    masks = pxfast.prune(net(), [BATCH], density=0.02, rounds=10, criterion=criterion)
    total = masks.total
    assert total == 36 + 64 * 16 + 16 * 3
    assert criterion.masks[0] == {}
    seen = [kept(given) for given in criterion.masks[1:]] + [masks.kept]
    assert seen == [round(0.02 ** (r / 10) * total) for r in range(1, 11)]


def test_removed_weights_never_return():
    criterion = Magnitude()
    final = pxfast.prune(net(), [BATCH], density=0.1, rounds=6, criterion=criterion)
    for before, after in zip(criterion.masks[1:], [*criterion.masks[2:], final], strict=True):
        assert all(not bool((after[name] & ~before[name]).any()) for name in after)


def test_pruning_by_scores_that_ignore_masks_is_one_shot():
    model = net()
    masks = pxfast.prune(model, [BATCH], density=0.1, rounds=6, criterion=Magnitude())
    scores = pxfast.Scores(Magnitude().score(model, [BATCH], masks={}))
    assert masks == scores.masks(density=0.1)


@pytest.mark.parametrize(("schedule", "rounds", "fractions"), [
    ("linear", 4, [0.8, 0.6, 0.4, 0.2]),
    ([0.5, 0.3, 0.2], 100, [0.5, 0.3, 0.2]),
    ("exponential", 1, [0.2]),
])  # fmt: skip
def test_schedules(schedule, rounds, fractions):
    criterion = Magnitude()
    masks = pxfast.prune(
        net(), [BATCH], sparsity=0.8, rounds=rounds, schedule=schedule, criterion=criterion
    )
    seen = [kept(given) for given in criterion.masks[1:]] + [masks.kept]
    assert seen == [round(fraction * masks.total) for fraction in fractions]
    assert masks.provenance["rounds"] == len(fractions)


def test_each_layer_keeps_its_own_fraction():
    masks = pxfast.prune(
        net(), [BATCH], density=0.2, rounds=5, scope="layer", criterion=Magnitude()
    )
    assert [layer.kept for layer in masks.layers] == [round(0.2 * n) for n in (36, 1024, 48)]


def test_the_default_criterion_is_px():
    model = net().eval()
    masks = pxfast.prune(model, BATCH, density=0.3, rounds=2, progress=False)
    first = pxfast.score(model, BATCH).masks(density=0.3**0.5)
    second = pxfast.score(model, BATCH, masks=first).masks(density=0.3, masks=first)
    assert masks == second
    assert masks.provenance["criterion"] == "px"


def test_options_reach_the_scores(monkeypatch):
    seen = []

    def score(scorer, masks=None, progress=None):
        seen.append({**scorer.options, "criterion": scorer.criterion, "progress": progress})
        seen[-1]["masks"] = masks
        return pxfast.Scores(Magnitude().score(scorer.model, scorer.data, masks=masks or {}))

    monkeypatch.setattr(Scorer, "__call__", score)
    options = {
        "criterion": "px-joint", "batchnorm": "data", "include": ["4*", "6*"], "exclude": "0*",
        "output": 0, "dtype": torch.bfloat16, "max_memory": 10**9,
    }  # fmt: skip
    pxfast.prune(net(), [BATCH], density=0.5, rounds=2, **options)
    assert [bool(given.pop("masks")) for given in seen] == [False, True]
    assert seen == [{**options, "progress": False}] * 2


def test_provenance_says_how_the_masks_were_made():
    masks = pxfast.prune(net(), BATCH, density=0.3, rounds=2)
    expected = {
        "pxfast": pxfast.__version__, "criterion": "px", "batchnorm": "running", "samples": 8,
        "density": 0.3, "rounds": 2, "schedule": "exponential", "scope": "global",
        "seed": torch.initial_seed(),
    }  # fmt: skip
    assert {name: masks.provenance[name] for name in expected} == expected
    assert len(masks.provenance["model_fingerprint"]) == 32
    assert len(masks.provenance["data_fingerprint"]) == 32
    last = pxfast.score(net(), BATCH, masks=pxfast.score(net(), BATCH).masks(density=0.3**0.5))
    assert masks.provenance["log2_R"] == last.provenance["log2_R"]  # of the last round


# ---- masks to start from ----


def test_starts_from_given_masks():
    criterion = Magnitude()
    start = pxfast.prune(net(), [BATCH], density=0.3, rounds=1, criterion=Magnitude())
    masks = pxfast.prune(net(), [BATCH], density=0.1, rounds=4, criterion=criterion, masks=start)
    assert kept(criterion.masks[0]) == start.kept
    alive = start.kept / start.total
    seen = [kept(given) for given in criterion.masks[1:]] + [masks.kept]
    assert seen == [round(alive * (0.1 / alive) ** (r / 4) * masks.total) for r in range(1, 5)]
    assert not any(bool((masks[name] & ~start[name]).any()) for name in masks)


def test_starts_from_the_models_own_masks():
    """Weights pruned by torch.nn.utils.prune are gone, though their stored scores are high."""
    model = net()
    torch_prune.custom_from_mask(model[4], "weight", torch.rand(16, 64) < 0.5)
    own = model[4].weight_mask.bool()

    class Stored(Magnitude):
        def score(self, model, data, *, masks):
            scores = super().score(model, data, masks={})
            scores["4.weight"] = torch.where(own, 0.1, 9.0)
            return scores

    given = torch.rand(16, 64) < 0.9
    masks = pxfast.prune(
        model, [BATCH], density=0.3, rounds=3, criterion=Stored(), masks={"4.weight": given}
    )
    assert masks["4.weight"].any()
    assert not (masks["4.weight"] & ~(own & given)).any()


def test_masks_of_other_weights_are_passed_on():
    criterion = Magnitude()
    bias = {"4.bias": torch.zeros(16)}
    masks = pxfast.prune(net(), [BATCH], density=0.3, rounds=2, criterion=criterion, masks=bias)
    assert "4.bias" not in masks
    assert all(not given["4.bias"].any() for given in criterion.masks)


def test_uneven_masks_with_a_density_per_layer():
    start = {"4.weight": torch.arange(1024).view(16, 64) < 300}
    masks = pxfast.prune(
        net(), [BATCH], density=0.2, rounds=5, scope="layer", criterion=Magnitude(), masks=start
    )
    assert [layer.kept for layer in masks.layers] == [round(0.2 * n) for n in (36, 1024, 48)]


def test_more_than_is_alive_is_refused_before_the_rounds():
    criterion = Magnitude()
    start = {"4.weight": torch.zeros(16, 64)}
    with pytest.raises(MaskError, match="only 84 alive"):
        pxfast.prune(net(), [BATCH], density=0.5, rounds=9, criterion=criterion, masks=start)
    assert len(criterion.masks) == 1


@pytest.mark.parametrize(("masks", "message"), [
    ({"nobody": torch.ones(2)}, "no weight 'nobody'"),
    ({"4.weight": torch.ones(2)}, r"has shape \[2\], the weight has \[16, 64\]"),
    ({"4.weight": torch.full((16, 64), 0.5)}, "only 0 and 1"),
])  # fmt: skip
def test_masks_that_do_not_fit_are_refused_before_work(masks, message):
    criterion = Magnitude()
    with pytest.raises(MaskError, match=message):
        pxfast.prune(net(), [BATCH], density=0.5, criterion=criterion, masks=masks)
    assert criterion.masks == []


# ---- the same batches ----


def test_every_round_sees_the_same_batches_and_nothing_is_drawn():
    data = TensorDataset(torch.arange(12.0))
    loader = DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(3))

    class Drawing(Magnitude):
        def score(self, model, data, *, masks):
            scores = super().score(model, data, masks=masks)
            noise = float(torch.rand(())) + random.random() + np.random.rand()
            self.batches[-1].append(torch.tensor(noise))
            return scores

    def states():
        return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    before, criterion = states(), Drawing()
    generator = loader.generator.get_state()
    pxfast.prune(net(), loader, density=0.1, rounds=4, criterion=criterion)
    rounds = [torch.cat([batch.flatten() for batch in seen]) for seen in criterion.batches]
    assert len(rounds) == 4
    assert all(torch.equal(seen, rounds[0]) for seen in rounds)
    assert rounds[0][:12].tolist() != list(range(12))
    after = states()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert (before[2] == after[2]).all()
    assert torch.equal(loader.generator.get_state(), generator)


@pytest.mark.parametrize("data", [iter([BATCH]), (BATCH for _ in range(3)), map(abs, [BATCH])])
def test_one_shot_iterators_are_refused(data):
    with pytest.raises(DataError, match="can be read only once: give a DataLoader or a list"):
        pxfast.prune(net(), data, density=0.5)


# ---- the model ----


def watched() -> nn.Sequential:
    """A model with everything that must not change: hooks, grads, mixed modes, pruned weights."""
    model = net().train()
    model[1].eval()
    model[4].register_forward_hook(lambda *_: None)
    torch_prune.random_unstructured(model[6], "weight", amount=0.2)
    model(BATCH).sum().backward()
    return model


def describe(model: nn.Module):
    return {
        name: (
            module.training,
            list(module._forward_hooks.values()),
            list(module._forward_pre_hooks.values()),
            sorted(vars(module)),
            list(module._parameters),
            {k: v.grad.clone() for k, v in module._parameters.items() if v is not None},
            [id(value) for value in module._parameters.values()],
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_model_is_untouched(interrupted):
    model = watched()
    state = copy.deepcopy(model.state_dict())
    before = describe(model)
    rng = torch.get_rng_state()
    if interrupted:

        class Interrupting(Magnitude):
            def score(self, model, data, *, masks):
                if len(self.masks) == 2:
                    raise KeyboardInterrupt
                return super().score(model, data, masks=masks)

        with pytest.raises(KeyboardInterrupt):
            pxfast.prune(model, [BATCH], density=0.1, rounds=5, criterion=Interrupting())
    else:
        pxfast.prune(model, BATCH, density=0.3, rounds=3)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    after = describe(model)
    assert after.keys() == before.keys()
    for name, was in before.items():
        now = after[name]
        assert now[:5] == was[:5]
        assert now[6] == was[6]
        assert all(torch.equal(now[5][key], grad) for key, grad in was[5].items())


# ---- criteria ----


def test_an_object_without_a_score_method():
    with pytest.raises(TypeError, match="criterion must be a name or an object with score"):
        pxfast.prune(net(), [BATCH], density=0.5, criterion=print)


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"expected one of px, px-joint, snip.*got 'unheard'"):
        pxfast.prune(net(), BATCH, density=0.5, criterion="unheard")


def test_an_object_does_not_take_options():
    with pytest.raises(ValueError, match="batchnorm, exclude: options of pxfast's own criteria"):
        pxfast.prune(
            net(), [BATCH], density=0.5, criterion=Magnitude(), batchnorm="data", exclude="0*"
        )


def test_a_criterion_must_score_the_same_weights_in_every_round():
    class Changing(Magnitude):
        def score(self, model, data, *, masks):
            scores = super().score(model, data, masks=masks)
            if masks:
                scores.pop("6.weight")
            return scores

    with pytest.raises(MaskError, match=r"round 2 scored other weights .*: 6\.weight"):
        pxfast.prune(net(), [BATCH], density=0.5, rounds=3, criterion=Changing())


# ---- arguments ----


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({}, ValueError, "exactly one of density"),
    ({"density": 0.5, "sparsity": 0.5}, ValueError, "exactly one of density"),
    ({"density": 1.5}, ValueError, r"density must be in \(0, 1\]"),
    ({"density": 1e-9}, MaskError, "rounds to no weight"),
    ({"density": 0.5, "rounds": 0}, ValueError, "rounds must be at least 1"),
    ({"density": 0.5, "schedule": "cosine"}, ValueError, "schedule must be one of"),
    ({"density": 0.5, "scope": "local"}, ValueError, "scope must be one of"),
    ({"density": 0.5, "pattern": "diagonal"}, ValueError, "pattern must be .* got 'diagonal'"),
    ({"density": 0.5, "pattern": 4}, TypeError, "pattern must be .* got 4"),
    ({"density": 0.3, "pattern": "2:4"}, ValueError, r"keeps the fraction 0\.5 .* leave density="),
    ({"density": 0.5, "min_density": 2}, ValueError, r"min_density must be in \(0, 1\], got 2"),
    ({"density": 0.5, "masks": [1]}, TypeError, "masks must be a mapping"),
])  # fmt: skip
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        pxfast.prune(net(), [BATCH], criterion=Magnitude(), **arguments)


def test_not_a_model():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got list"):
        pxfast.prune([BATCH], [BATCH], density=0.5)


# ---- the progress bar ----


@pytest.mark.parametrize(("progress", "shown"), [(None, False), (False, False), (True, True)])
def test_progress(capsys, progress, shown):
    """Without a terminal (here), None is quiet."""
    pxfast.prune(net(), BATCH, density=0.25, rounds=2, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert bool(err) is shown
    if shown:
        assert "2/2" in err
        assert "density 25.000%" in err


def test_no_warnings_in_an_ordinary_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pxfast.prune(net(), BATCH, density=0.5, rounds=3)
