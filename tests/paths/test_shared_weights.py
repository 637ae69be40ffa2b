"""Weights used twice, in pieces, frozen, or not learned at all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import random_batch, random_masks, seeded
from peculiar import assert_same, net, plain
from scored import CRITERIA
from torch import Tensor, nn

import pxfast
from pxfast.reference import px


class Tied(nn.Module):
    """A layer used twice, and a decoder that uses the encoder's weight the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle, self.again = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.again.weight = self.middle.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.middle(F.relu(self.encode(x))))
        x = F.relu(self.again(x))
        return F.linear(x, self.encode.weight.t())


class Untied(nn.Module):
    """The same network with weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle, self.again = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.decode = nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.middle(F.relu(self.encode(x))))
        return self.decode(F.relu(self.again(x)))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_tied_weight_has_the_sum_of_its_scores(criterion):
    tied = seeded(Tied, 0).double()
    untied = Untied().double()
    untied.load_state_dict(tied.state_dict() | {"decode.weight": tied.encode.weight.t()})
    x = random_batch((4,), 3).double()
    masks = random_masks(Tied(), 0.7)
    del masks["again.weight"]
    parts = px.score(
        untied, x, criterion=criterion,
        masks=masks | {"again.weight": masks["middle.weight"],
                       "decode.weight": masks["encode.weight"].t()},
    )  # fmt: skip
    expected = {
        "encode.weight": parts["encode.weight"] + parts["decode.weight"].t(),
        "middle.weight": parts["middle.weight"] + parts["again.weight"],
    }
    assert_same(pxfast.score(tied, x, criterion=criterion, masks=masks), expected)


class InPieces(nn.Linear):
    """One stored weight, used in two pieces."""

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = self.weight.chunk(2, 0)
        return torch.cat([F.linear(x, upper), F.linear(x, lower)], 1) + self.bias


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_weight_in_pieces_scores_as_a_whole(criterion):
    model = net(lambda: InPieces(5, 6))
    reference = plain(model, model.inner.weight)
    x, masks = random_batch((4,), 3).double(), random_masks(reference, 0.6)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert_same(scores, px.score(reference, x, criterion=criterion, masks=masks))


def test_frozen_weights_and_weights_without_a_gradient_are_scored():
    model = net(lambda: nn.Linear(5, 6))
    x = random_batch((4,), 3).double()
    expected = px.score(model, x)
    model.inner.weight.requires_grad_(False)
    assert_same(pxfast.score(model, x), expected)
    assert_same(pxfast.score(model.requires_grad_(False), x), expected)
    assert not model.inner.weight.requires_grad and model.inner.weight.grad is None


def test_a_constant_kernel_is_no_weight():
    """A fixed blur: its squares count, and nothing is scored."""

    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.tensor([[[0.25, 0.5, 0.25]]]).expand(3, 1, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(x, self.kernel, groups=3)

    model = nn.Sequential(nn.Conv1d(2, 3, 2), Blur(), nn.Flatten(), nn.Linear(9, 2))
    assert list(pxfast.score(model, torch.randn(2, 2, 6))) == ["0.weight", "3.weight"]
