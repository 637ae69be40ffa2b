"""Masks of score(): the same however they are given, and what they hide."""

from __future__ import annotations

import nets
import torch
from peculiar import MaskStep
from scored import assert_bit_equal
from torch.nn.utils import parametrize, prune

import pxfast


def test_a_mask_means_the_same_however_it_is_given():
    x = nets.random_batch((1, 5, 5), 3)
    masks = nets.random_masks(nets.conv(seed=5), 0.5)
    given = pxfast.score(nets.conv(seed=5), x, masks=masks)
    for name, mask in masks.items():
        assert bool((given[name][~mask] == 0).all())
    pruned, masked, zeroed = (nets.conv(seed=5) for _ in range(3))
    for name, mask in masks.items():
        module = name.rpartition(".")[0]
        prune.custom_from_mask(pruned.get_submodule(module), "weight", mask)
        parametrize.register_parametrization(
            masked.get_submodule(module), "weight", MaskStep(mask.float())
        )
        with torch.no_grad():
            zeroed.get_parameter(name)[~mask] = 0
    assert_bit_equal(pxfast.score(pruned, x), given)
    assert_bit_equal(pxfast.score(masked, x), given)
    assert_bit_equal(pxfast.score(zeroed, x, masks=masks), given)
    as_floats = {name: mask.float() for name, mask in masks.items()}
    assert_bit_equal(pxfast.score(nets.conv(seed=5), x, masks=as_floats), given)


def test_given_masks_apply_on_top_of_the_model_s_own():
    x, model = nets.random_batch((4,), 3), nets.mlp(seed=6)
    first, second = nets.random_masks(model, 0.7, 1), nets.random_masks(model, 0.7, 2)
    both = pxfast.score(model, x, masks={name: first[name] & second[name] for name in first})
    for name, mask in first.items():
        prune.custom_from_mask(model.get_submodule(name.rpartition(".")[0]), "weight", mask)
    assert_bit_equal(pxfast.score(model, x, masks=second), both)


def test_a_masked_weight_may_hold_anything():
    model, x = nets.mlp(seed=7), nets.random_batch((4,), 3)
    masks = nets.random_masks(model, 0.5)
    expected = pxfast.score(model, x, masks=masks)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name)[~mask] = 1e30
    assert_bit_equal(pxfast.score(model, x, masks=masks), expected)
