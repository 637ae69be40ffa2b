"""N:M: the groups, the layout of torch.sparse, and layers that it does not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_selection import POOL, assert_same, layers, n_of_m
from torch import Tensor, nn
from torch.sparse import _semi_structured_conversions as conversions

import pxfast
from pxfast.errors import MaskError
from pxfast.patterns import NM

MULTIPLES_OF_4 = ((3, 4), (2, 8), (4, 4, 1), (2, 4, 1, 2), (1, 8))


@settings(max_examples=60, deadline=None)
@given(layers(shapes=MULTIPLES_OF_4), st.sampled_from([(1, 4), (2, 4), (3, 4), (1, 2)]))
def test_equals_sorting_every_group(case, numbers):
    scores, alive = case
    masks = pxfast.Scores(scores).masks(pattern=NM(*numbers), masks=alive)
    expected = {n: n_of_m(scores[n], alive.get(n), *numbers) for n in scores}
    assert_same(masks, expected)


@pytest.mark.parametrize("numbers", [(2, 4), (1, 4), (4, 8), (1, 3), (7, 16), (2, 40)])
def test_random_scores(numbers):
    n, m = numbers
    score = torch.tensor(POOL)[torch.randint(len(POOL), (5, 2 * m, 2))]
    alive = torch.rand(score.shape) < 0.7
    masks = pxfast.Scores({"w": score}).masks(pattern=NM(n, m), masks={"w": alive})
    assert_same(masks, {"w": n_of_m(score, alive, n, m)})


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_density_is_the_patterns(scope):
    scores = pxfast.Scores({"a": torch.rand(6, 8), "b": torch.rand(5, 4) + 9})
    masks = scores.masks(pattern="2:4", scope=scope)
    assert [layer.density for layer in masks.layers] == [0.5, 0.5]
    assert masks.provenance == {"density": 0.5, "scope": scope, "pattern": "2:4"}
    assert scores.masks(pattern="2:4", density=0.5, scope=scope) == masks
    assert scores.masks(pattern=NM(1, 4), sparsity=0.75).density == 0.25
    with pytest.raises(ValueError, match=r"pattern=2:4 keeps the fraction 0\.5 .* but 0\.6 was"):
        scores.masks(pattern="2:4", density=0.6)
    with pytest.raises(ValueError, match="exactly one of density"):
        scores.masks(pattern="2:4", density=0.5, sparsity=0.5)


# ---- the layout ----


def semi_structured_matrix(weight: Tensor) -> Tensor:
    """The matrix that sparse tensor cores multiply: of a convolution, channels last."""
    return weight if weight.dim() == 2 else weight.movedim(1, -1).flatten(1)


def survives(matrix: Tensor) -> bool:
    """Whether torch's 2:4 format, which keeps two of four neighbours in a row, loses nothing."""
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(matrix)
    unpacked = conversions.sparse_semi_structured_to_dense_cutlass(packed, meta)
    return torch.equal(unpacked, matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 64), (64, 128), (32, 32, 3, 3), (32, 64, 1), (32, 16, 4)])
def test_the_format_of_torch_sparse_keeps_every_weight(shape, dtype):
    weight = torch.randn(shape)
    masks = pxfast.Scores({"w": weight.abs()}).masks(pattern=NM(2, 4))
    masked = (weight * masks["w"]).to(dtype)
    assert survives(semi_structured_matrix(masked))
    assert not survives(semi_structured_matrix(weight.to(dtype)))
    if len(shape) == 4 and shape[2] > 1:
        assert not survives(masked.flatten(1))  # kernel positions first: not this layout


def test_torch_sparse_multiplies_the_same(device):
    weight = torch.randn(64, 128)
    masks = pxfast.Scores({"w": weight.abs()}).masks(pattern=NM(2, 4))
    masked = (weight * masks["w"]).half().to(device)
    if device.type != "cuda":
        assert (masked.view(64, 32, 4) != 0).sum(-1).eq(2).all()
        return
    x = torch.randn(128, 64, device=device).half()
    sparse = torch.sparse.to_sparse_semi_structured(masked)
    torch.testing.assert_close(sparse.to_dense(), masked, rtol=0, atol=0)
    # Both are float16 products of 128 terms with float32 sums, rounded once.
    torch.testing.assert_close(sparse @ x, masked @ x, rtol=2**-10, atol=2**-10)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_are_grouped_along_their_inputs(groups):
    model = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, groups=groups), nn.Conv2d(8, 6, 3))
    scores = pxfast.Scores({f"{i}.weight": torch.rand_like(model[i].weight) for i in range(2)})
    masks = scores.masks(pattern=NM(2, 4).of(model))
    ours = masks["0.weight"]  # [C, O / groups, kh, kw]
    inputs = 8 // groups
    for group in range(groups):
        block = slice(group * inputs, (group + 1) * inputs)
        expected = n_of_m(scores["0.weight"][block].transpose(0, 1), None, 2, 4).transpose(0, 1)
        assert torch.equal(ours[block], expected)
    assert torch.equal(masks["1.weight"], n_of_m(scores["1.weight"], None, 2, 4))


# ---- layers that do not fit ----


def test_other_layers_stay_dense_and_are_named():
    tensors = {
        "stem": torch.rand(8, 3, 3, 3), "depthwise": torch.rand(8, 1, 3, 3), "scale": torch.rand(8),
        "fc": torch.rand(10, 8),
    }  # fmt: skip
    stem = torch.rand(8, 3, 3, 3) < 0.5
    with pytest.warns(UserWarning) as caught:
        masks = pxfast.Scores(tensors).masks(pattern="2:4", masks={"stem": stem})
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message) == (
        "pattern=2:4 does not fit, and leaves dense: stem (3 inputs), depthwise (1 inputs), "
        "scale (0 inputs)"
    )
    assert torch.equal(masks["stem"], stem)
    assert masks["depthwise"].all() and masks["scale"].all()
    assert masks.layers[3].kept == 40


def test_no_layer_fits():
    scores = pxfast.Scores({"a": torch.rand(8, 3, 3, 3)})
    with pytest.raises(MaskError, match=r"pattern=2:4 fits no layer: .* multiple of 4"):
        scores.masks(pattern="2:4")


def test_groups_with_less_than_n_alive_keep_all_of_them():
    alive = torch.tensor([[0, 0, 1, 0, 1, 1, 1, 0]])
    score = torch.tensor([[9.0, 9, 0, 9, 1, 2, 3, 9]])
    masks = pxfast.Scores({"w": score}).masks(pattern="2:4", masks={"w": alive})
    assert masks["w"].int().tolist() == [[0, 0, 1, 0, 0, 1, 1, 0]]


def test_a_layer_without_outputs():
    masks = pxfast.Scores({"none": torch.rand(0, 4), "w": torch.rand(1, 4)}).masks(pattern="2:4")
    assert masks["none"].shape == (0, 4)
    assert masks.kept == 2


def test_scores_are_left_as_they_are():
    score = torch.rand(4, 8)
    before = score.clone()
    pxfast.Scores({"w": score}).masks(pattern="2:4", masks={"w": torch.rand(4, 8) < 0.5})
    assert torch.equal(score, before)


@pytest.mark.parametrize(("numbers", "error", "message"), [
    ((4, 2), ValueError, "1 <= n < m must hold, got n=4, m=2"), ((0, 4), ValueError, "n=0, m=4"),
    ((4, 4), ValueError, "n=4, m=4"), ((2.0, 4), TypeError, "n must be a whole number, got 2.0"),
    ((1, True), TypeError, "m must be a whole number"),
])  # fmt: skip
def test_numbers_that_make_no_pattern(numbers, error, message):
    with pytest.raises(error, match=message):
        NM(*numbers)
