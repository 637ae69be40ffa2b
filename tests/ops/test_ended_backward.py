"""A backward that ended behind an op must not go on before it with zeros: the side branch of every
block would run through all the blocks before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pxfast import ops


class Ending(torch.autograd.Function):
    """Hands no cotangent on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> None:  # type: ignore[override]
        return None


class Watching(torch.autograd.Function):
    """Notes the cotangents that arrive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arrived: list[Tensor | None]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.arrived = arrived
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> Any:  # type: ignore[override]
        ctx.arrived.append(dy)
        return dy, None


def gated(path: Tensor) -> Tensor:
    return ops.gate(torch.randn(2, 3), path, "gelu")[1]


def attended(path: Tensor) -> Tensor:
    q, k, v = torch.randn(3, 1, 1, 2, 3)
    return ops.squared_attention(q, k, path[None, None], v)[1]


@pytest.mark.parametrize("op", [gated, attended])
@pytest.mark.parametrize("ends", [True, False])
def test_a_backward_that_has_ended_stays_so(op, ends):
    arrived: list[Tensor | None] = []
    y = op(Watching.apply(torch.rand(2, 3, requires_grad=True), arrived))
    (Ending.apply(y) if ends else y).sum().backward()
    assert [dy is None for dy in arrived] == [ends]
