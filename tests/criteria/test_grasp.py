"""GraSP against its formula, with the whole Hessian."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from tolerances import CANCELLING, close

import pxfast
from pxfast.criteria import GraSP


def labelled_batch(shape, samples=5, seed=0):
    x = nets.random_batch(shape, samples, seed).double()
    return x, torch.arange(samples) % 3


def formula(model, x, y, masks, temperature, batchnorm="data"):
    """θ ⊙ Hg: gradient and Hessian of the mean loss by all prunable weights that are kept."""
    model = copy.deepcopy(model).train(batchnorm == "data")
    names = nets.prunable_names(model)
    shapes = [model.get_parameter(name).shape for name in names]
    kept = [masks.get(n, torch.ones(s)) for n, s in zip(names, shapes, strict=True)]
    theta = torch.cat(
        [(model.get_parameter(n) * m).flatten() for n, m in zip(names, kept, strict=True)]
    ).detach()

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        logits = torch.func.functional_call(model, weights, x)
        return F.cross_entropy(logits / temperature, y)

    gradient = torch.autograd.functional.jacobian(loss, theta)
    hessian = torch.autograd.functional.hessian(loss, theta)
    scores = theta * (hessian @ (gradient * torch.cat([m.flatten() for m in kept])))
    parts = scores.split([shape.numel() for shape in shapes])
    return {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}


def assert_close(scores, expected):
    assert list(scores) == list(expected)
    for name, score in expected.items():
        close(scores[name], score, CANCELLING, name)


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "batchnorm", "leaky", "functional"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_formula(name, masked):
    model = NETS[name].build().double()
    x, y = labelled_batch(NETS[name].shape)
    masks = nets.random_masks(model, 0.6) if masked else {}
    scores = pxfast.score(model, (x, y), criterion="grasp", masks=masks)
    assert_close(scores, formula(model, x, y, masks, 200))
    assert any((score < 0).any() for score in scores.values())


def test_batchnorm_by_running_statistics():
    model = NETS["batchnorm"].build().double()
    x, y = labelled_batch(NETS["batchnorm"].shape)
    scores = pxfast.score(model, (x, y), criterion=GraSP(batchnorm="running"))
    assert_close(scores, formula(model, x, y, {}, 200, batchnorm="running"))
    assert scores != pxfast.score(model, (x, y), criterion="grasp")


def test_the_temperature_divides_the_logits():
    model = nets.mlp().double()
    x, y = labelled_batch((4,))
    scores = pxfast.score(model, (x, y), criterion=GraSP(temperature=3))
    assert_close(scores, formula(model, x, y, {}, 3))
    assert scores.provenance["temperature"] == 3


def test_a_high_score_means_that_the_gradient_needs_the_weight():
    """S_j is half of what ‖g‖² loses as the weight shrinks: a high one carries the flow."""
    model, step = nets.mlp().double(), 1e-6
    x, y = labelled_batch((4,))
    scores = pxfast.score(model, (x, y), criterion=GraSP(temperature=1))
    names = nets.prunable_names(model)

    def flow(name, weight):
        state = {n: model.get_parameter(n).detach() for n in names} | {name: weight}
        state = {n: w.clone().requires_grad_() for n, w in state.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, state, x), y)
        return sum(g.square().sum() for g in torch.autograd.grad(loss, list(state.values())))

    for name in names:
        weight = model.get_parameter(name).detach()
        index = int(scores[name].argmax())
        smaller = weight.clone()
        smaller.view(-1)[index] *= 1 - step
        lost = (flow(name, weight) - flow(name, smaller)) / (2 * step)
        assert lost == pytest.approx(float(scores[name].max()), rel=1e-3)
        assert lost > 0


def test_batches_of_unequal_size_are_one_data_set():
    net = NETS["conv"]
    model = net.build().double()
    x, y = labelled_batch(net.shape, 7)
    whole = pxfast.score(model, (x, y), criterion="grasp")
    parts = pxfast.score(model, [(x[:2], y[:2]), (x[2:], y[2:])], criterion="grasp")
    assert_close(parts, whole)


def test_both_passes_see_the_same_batches():
    net = NETS["mlp"]
    model = net.build().double()
    x, y = labelled_batch(net.shape, 8)

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, index):
            return x[index] + torch.randn(4), y[index]

    loader = torch.utils.data.DataLoader(Noisy(), batch_size=3, shuffle=True)
    torch.manual_seed(5)
    batches = list(loader)
    torch.manual_seed(5)
    assert pxfast.score(model, loader, criterion="grasp") == pxfast.score(
        model, batches, criterion="grasp"
    )


def test_an_iterator_is_refused():
    data = iter([labelled_batch((4,))])
    with pytest.raises(pxfast.errors.DataError, match="grasp reads the data twice"):
        pxfast.score(nets.mlp().double(), data, criterion="grasp")


def test_a_masked_weight_never_returns_although_others_score_less():
    model = nets.mlp()
    x, y = labelled_batch((4,))
    masks = nets.random_masks(model, 0.5)
    scores = pxfast.score(model, (x, y), criterion="grasp", masks=masks)
    alive = sum(int(mask.sum()) for mask in masks.values())
    kept = scores.masks(density=alive / scores.total, masks=masks)
    assert all(torch.equal(kept[name], mask) for name, mask in masks.items())
