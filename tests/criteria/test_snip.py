"""SNIP against its formula."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from tolerances import CANCELLING, close

import pxfast
from pxfast.criteria import SNIP


def labelled_batch(shape, samples=6, seed=0):
    x = nets.random_batch(shape, samples, seed).double()
    return x, torch.arange(samples) % 3


def formula(model, x, y, masks, loss=F.cross_entropy, batchnorm="data"):
    """|g θ| / Σ|g θ| by a backward through a copy that holds θ·M."""
    model = copy.deepcopy(model).train(batchnorm == "data")
    weights = {name: model.get_parameter(name) for name in nets.prunable_names(model)}
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
    loss(model(x), y).backward()
    scores = {name: (theta.grad * theta).abs().detach() for name, theta in weights.items()}
    total = sum(score.sum() for score in scores.values())
    return {name: score / total for name, score in scores.items()}


def assert_close(scores, expected):
    assert list(scores) == list(expected)
    for name, score in expected.items():
        close(scores[name], score, CANCELLING, name)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_formula(net, masked):
    model = net.build().double()
    x, y = labelled_batch(net.shape)
    masks = nets.random_masks(model, 0.5) if masked else {}
    scores = pxfast.score(model, (x, y), criterion="snip", masks=masks)
    assert_close(scores, formula(model, x, y, masks))
    assert sum(scores.totals().values()) == pytest.approx(1, abs=1e-12)


def test_it_is_the_derivative_by_the_mask():
    model, step = nets.mlp().double(), 1e-6
    x, y = labelled_batch((4,))
    scores = pxfast.score(model, (x, y), criterion="snip")
    found = {}
    for name in scores:
        weight = model.get_parameter(name).detach()
        derivative = torch.zeros_like(weight)
        for index in range(weight.numel()):
            losses = []
            for c in (1 + step, 1 - step):
                moved = weight.clone()
                moved.view(-1)[index] *= c
                logits = torch.func.functional_call(model, {name: moved}, x)
                losses.append(F.cross_entropy(logits, y))
            derivative.view(-1)[index] = (losses[0] - losses[1]).detach() / (2 * step)
        found[name] = derivative.abs()
    total = sum(score.sum() for score in found.values())
    for name, score in scores.items():
        # the step's error: third derivatives times step², and rounding 1e-16 / step
        close(score, found[name] / total, 1e-7, name)


def test_batches_of_unequal_size_are_one_data_set():
    net = NETS["residual"]
    model = net.build().double()
    x, y = labelled_batch(net.shape, 7)
    whole = pxfast.score(model, (x, y), criterion="snip")
    parts = pxfast.score(model, [(x[:2], y[:2]), [x[2:], y[2:]]], criterion="snip")
    assert_close(parts, whole)
    assert parts.provenance["samples"] == 7


def test_batchnorm_by_the_data_as_the_authors_or_by_running_statistics():
    net = NETS["batchnorm"]
    model = net.build().double()
    x, y = labelled_batch(net.shape)
    found = {}
    for batchnorm in ("data", "running"):
        found[batchnorm] = pxfast.score(model, (x, y), criterion=SNIP(batchnorm=batchnorm))
        assert_close(found[batchnorm], formula(model, x, y, {}, batchnorm=batchnorm))
        assert found[batchnorm].provenance["batchnorm"] == batchnorm
    assert found["data"] == pxfast.score(model, (x, y), criterion="snip")
    assert found["data"] != found["running"]
    with pytest.raises(pxfast.errors.PxfastError, match=r"batchnorm: expected .* got 'batch'"):
        pxfast.score(model, (x, y), criterion=SNIP(batchnorm="batch"))


def test_another_loss():
    model = nets.mlp().double()
    x, y = labelled_batch((4,))
    targets = F.one_hot(y, 3).double()
    scores = pxfast.score(model, (x, targets), criterion=SNIP(loss=F.mse_loss))
    assert_close(scores, formula(model, x, targets, {}, F.mse_loss))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda z, y: F.cross_entropy(z, y, reduction="none"), "must be one number.*got \\[6\\]"),
        (
            lambda z, y: F.cross_entropy(z, y + 5),
            "loss of batch 1 .*outputs of shape \\[6, 3\\], labels torch.int64 .*not be computed",
        ),
        (lambda z, y: 0.0, "must be one number.*got float"),
    ],
)
def test_a_loss_that_does_not_fit(loss, message):
    with pytest.raises(pxfast.errors.DataError, match=message):
        pxfast.score(nets.mlp().double(), labelled_batch((4,)), criterion=SNIP(loss=loss))


def test_a_loss_that_no_weight_changes_scores_0_everywhere():
    zero = SNIP(loss=lambda z, y: 0 * z.sum())
    scores = pxfast.score(nets.mlp(), labelled_batch((4,)), criterion=zero)
    assert not any(score.any() for score in scores.values())
