"""Where value paths leave a weight is noted by row, not by entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pxfast.paths.select import all_set
from pxfast.paths.weight import Weight
from pxfast.paths.weights import Weights

FIRST = torch.tensor([[True], [False], [False]])
LAST = torch.tensor([[False], [False], [True]])


def noting(shape: tuple[int, ...]) -> tuple[nn.Parameter, Weights]:
    """A weight, and the weights of its model in the middle of the structure pass."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(shape))
    return model.weight, Weights(model, {}, lambda name: True, purpose="structure", rows={})


def noted(weights: Weights) -> Tensor:
    assert weights.rows is not None
    return weights.rows["weight"]


def seen(weights: Weights, parameter: Tensor, view: Callable[[Tensor], Tensor]) -> Weight:
    """The weight that a linear operation sees through a view that the model makes."""
    made = view(parameter)
    weights.follow(view, (parameter,), {}, made)
    return weights(made)


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 4, 4)])
def test_rows_are_held_once_each(shape):
    parameter, weights = noting(shape)
    for rows in (FIRST, LAST):
        weights(parameter).note_value_rows(rows.reshape(-1, *[1] * (len(shape) - 1)))
    rows = noted(weights)
    assert rows.shape == shape
    assert rows.flatten(1).all(1).tolist() == [True, False, True]
    assert rows.flatten(1).any(1).tolist() == [True, False, True]
    assert rows.untyped_storage().nbytes() == 3  # not one byte for every weight
    assert not all_set(rows)


def test_rows_of_a_transposed_weight_are_its_columns():
    parameter, weights = noting((5, 3))
    weights(parameter).transposed().note_value_rows(FIRST)
    assert noted(weights).tolist() == [[True, False, False]] * 5


def test_views_lead_to_the_rows_of_the_parameter():
    parameter, weights = noting((6, 5))
    whole = weights(parameter)
    whole.note_value_rows(torch.tensor([[True]] + [[False]] * 5))
    part = seen(weights, parameter, lower_half)
    part.note_value_rows(FIRST)
    assert noted(weights).all(1).tolist() == [True, False, False, True, False, False]
    assert part.has_side_rows()
    assert part.value_rows is not None and part.value_rows[:, 0].tolist() == [True, False, False]


def lower_half(tensor: Tensor) -> Tensor:
    return tensor[3:]


lower_half.__name__ = "__getitem__"
