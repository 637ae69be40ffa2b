"""Rotary embeddings in complex form against their real form, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attending import HEADS, TOKENS, WIDTH, Spelling, attending, case
from middles import behind, data_pass_forced
from nets import random_batch, random_masks
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.errors import NoRuleError

EXACT = SMALL_NET[torch.float64]
ANGLES = torch.linspace(0.3, 2.0, TOKENS).double()[:, None]
sdpa = F.scaled_dot_product_attention


def turned(x: Tensor) -> Tensor:
    """The real form: x · cos + (x turned by a quarter) · sin."""
    quarter = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * ANGLES.cos().to(x) + quarter * ANGLES.sin().to(x)


def by_polar(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2).contiguous())
    turn = torch.polar(torch.ones_like(ANGLES), ANGLES)
    return torch.view_as_real(pairs * turn).flatten(3).type_as(x)


def moved_between(x: Tensor) -> Tensor:
    """Tokens first, as in Llama, and in place."""
    pairs = torch.view_as_complex(x.transpose(1, 2).unflatten(-1, (-1, 2)).contiguous())
    pairs *= torch.exp(1j * ANGLES)[:, None]
    return torch.view_as_real(pairs.transpose(1, 2).clone()).flatten(-2)


FORMS = {"polar": by_polar, "moved between": moved_between}


class Rotary(nn.Module):
    """Attention with q and k turned."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(self.turn(q), self.turn(k), v)


CASES = {
    name: case(Spelling(lambda q, k, v, turn=turn: sdpa(turn(q), turn(k), v)))
    for name, turn in FORMS.items()
}


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("form", FORMS)
def test_complex_rotations_score_as_real_ones(form, criterion):
    models = [attending(Rotary(turn)) for turn in (turned, FORMS[form])]
    x = random_batch((TOKENS, 3), 3, 7).double()
    close(models[1](x), models[0](x), EXACT, "values")
    for masks in (None, random_masks(models[0], 0.6, 3)):
        with data_pass_forced():
            expected, scores = (
                pxfast.score(model, x, criterion=criterion, masks=masks) for model in models
            )
        for name, score in expected.items():
            close(scores[name], score, EXACT, name)


@pytest.mark.parametrize("squares", [False, True])
def test_both_halves_are_sent_to_both(squares):
    """Path sums entry by entry, of a value that other entries of its pair have not."""
    path = torch.rand(2, HEADS, TOKENS, WIDTH).double()
    z = torch.randn(path.shape).double()
    found = behind(by_polar, z, path, squares=squares, gates=not squares)
    cos, sin = (ANGLES.cos() ** 2, ANGLES.sin() ** 2) if squares else (1.0, 1.0)
    real, imaginary = path[..., :1], path[..., 1:]
    expected = [real * cos + imaginary * sin, real * sin + imaginary * cos]
    close(found, torch.cat(expected, -1), EXACT, "halves")


LOST = {
    "abs": (lambda z: z.abs(), "abs has no rule for complex tensors"),
    "a sum": (lambda z: torch.view_as_real(z + z), "add has no rule for complex tensors"),
    "a product of two": (lambda z: torch.view_as_real(z * z), "one factor must be a constant"),
}


@pytest.mark.parametrize("name", LOST)
def test_no_half_is_lost_silently(name):
    function, message = LOST[name]
    with pytest.raises(NoRuleError, match=message):
        behind(lambda x: function(torch.view_as_complex(x)), torch.randn(3, 4, 2).double())
