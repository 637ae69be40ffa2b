"""NTK-SAP against its formula."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
from nets import NETS
from tolerances import CANCELLING, close
from torch import nn

import pxfast
from pxfast.criteria import NTKSAP


def draws(model, x, masks, epsilon, shuffle, seed):
    """Z, θ₀ and θ₀ + Δθ, drawn in the order in which the criterion draws."""
    removed = sum(int((~mask).sum()) for mask in masks.values())
    generator = torch.Generator().manual_seed(seed + removed)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    start, moved = {}, {}
    for name in nets.prunable_names(model):
        theta = model.get_parameter(name).detach().clone()
        mask = masks.get(name, torch.ones_like(theta, dtype=torch.bool))
        if shuffle:
            order = torch.randperm(int(mask.sum()), generator=generator)
            theta[mask] = theta[mask][order]
        start[name] = theta
    for name, theta in start.items():
        step = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        moved[name] = theta + epsilon * step
    return noise, start, moved


def formula(model, x, masks, epsilon=0.01, shuffle=True, seed=0):
    """|∂/∂M ‖f(Z; θ₀·M) − f(Z; (θ₀ + Δθ)·M)‖²|, BatchNorm as in the authors' code."""
    noise, start, moved = draws(model, x, masks, epsilon, shuffle, seed)
    kept = {
        name: masks.get(name, torch.ones_like(theta)).double().requires_grad_()
        for name, theta in start.items()
    }

    def run(model, weights):
        return torch.func.functional_call(
            model, {n: w * kept[n] for n, w in weights.items()}, noise
        )

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = 1.0
    model.train()
    run(model, start)
    model.eval()
    change = run(model, start) - run(model, moved)
    change.square().sum().backward()
    return {name: m.grad.abs() * (m != 0) / epsilon**2 / len(x) for name, m in kept.items()}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_formula(net, masked):
    model = net.build().double()
    x = nets.random_batch(net.shape, 4).double()
    masks = nets.random_masks(model, 0.5) if masked else {}
    scores = pxfast.score(model, x, criterion="ntk-sap", masks=masks)
    expected = formula(model, x, masks)
    assert list(scores) == list(expected)
    for name, score in expected.items():
        # f − f′ of size ε cancels in the networks' outputs
        close(scores[name], score, CANCELLING / 0.01, name)


def test_settings_reach_the_formula():
    model = nets.mlp().double()
    x = nets.random_batch((4,), 5).double()
    settings = {"epsilon": 0.1, "shuffle": False, "seed": 3}
    scores = pxfast.score(model, x, criterion=NTKSAP(**settings))
    for name, score in formula(model, x, {}, **settings).items():
        close(scores[name], score, CANCELLING / 0.1, name)
    assert {key: scores.provenance[key] for key in settings} == settings


def test_on_a_linear_layer_it_is_the_derivative_of_the_trace():
    """f = (θ·M) z: tr Θ = Σ M² z², so ∂/∂M of its mean over z is 2 wherever M is 1."""
    model = nn.Linear(4, 3, bias=False).double()
    mask = torch.tensor([[1, 1, 0, 1]] * 3)
    count = 4000
    scores = pxfast.score(
        model, torch.zeros(50, 4), criterion=NTKSAP(draws=count // 50), masks={"weight": mask}
    )["weight"]
    assert torch.equal(scores[:, 2], torch.zeros(3).double())
    # Of 2 Δ_j z_j Σ_i Δ_i z_i over 3 alive weights: mean 2; Δ is drawn once for 50 samples, so the
    # variance is at most 4·(E[Δ⁴]E[z²]² + 2) = 20 per draw of Δ, of which there are 80.
    error = (20 / (count // 50)) ** 0.5
    assert (scores[:, [0, 1, 3]] - 2).abs().max() < 3 * error
    assert abs(float(scores[:, [0, 1, 3]].mean()) - 2) < 3 * error / 9**0.5 * 2


def test_more_draws_of_a_batch_are_more_batches():
    model = nets.mlp().double()
    x = nets.random_batch((4,), 2).double()
    scores = pxfast.score(model, x, criterion=NTKSAP(draws=3))
    assert scores == pxfast.score(model, [x, x, x], criterion=NTKSAP())
    assert scores.provenance["samples"] == 6


def test_every_mask_and_seed_draws_anew():
    model = nets.mlp().double()
    x = nets.random_batch((4,)).double()
    masks = nets.random_masks(model, 0.5)
    fewer = {name: mask.clone() for name, mask in masks.items()}
    fewer["0.weight"][0] = False

    def last(**settings):
        return pxfast.score(model, x, criterion=NTKSAP(**settings), masks=masks)["4.weight"]

    assert torch.equal(last(), last(seed=0))
    assert not torch.equal(last(), last(seed=1))
    start = draws(model, x, masks, 0.01, True, 0)[0]
    assert not torch.equal(start, draws(model, x, fewer, 0.01, True, 0)[0])
    other = pxfast.score(model, x, criterion="ntk-sap", masks=fewer)
    close(other["4.weight"], formula(model, x, fewer)["4.weight"], CANCELLING / 0.01)


@pytest.mark.parametrize("settings", [{"epsilon": 0}, {"epsilon": float("nan")}, {"draws": 0}])
def test_settings_that_mean_nothing(settings):
    with pytest.raises(pxfast.errors.PxfastError, match=f"NTKSAP: {next(iter(settings))} must be"):
        NTKSAP(**settings)
