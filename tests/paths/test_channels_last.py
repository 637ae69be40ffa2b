"""Memory formats: a channels_last model runs in channels_last, with the same scores."""

from __future__ import annotations

import nets
import pytest
import torch
import torch.nn.functional as F
from tolerances import DEEP_NET, close
from torch import Tensor, nn

import pxfast
from pxfast import models

CRITERIA = ("px", "px-joint")


def note(x: Tensor) -> None:
    """Note how a value lies in memory; in a pass on shapes alone there is none."""
    if not x.is_meta:
        LAYOUTS.append(x.is_contiguous(memory_format=torch.channels_last))


class Spy(nn.Module):
    """Hands its input to a convolution and notes how it lies in memory."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        note(x)
        return self.layer(x)


LAYOUTS: list[bool] = []


def spied(model: nn.Module) -> nn.Module:
    """3x3 convolutions of more than one channel, between norms, activations and sums."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, Spy(module))
    return model


@pytest.mark.parametrize(
    ("criterion", "masked"), [("px", True), ("px-joint", False), ("px-joint", True)]
)
def test_convolutions_see_channels_last(criterion, masked):
    torch.manual_seed(0)
    model = spied(models.resnet20().eval())
    x = torch.randn(2, 3, 16, 16)
    masks = nets.random_masks(model, 0.5) if masked else None
    expected = pxfast.score(model, x, criterion=criterion, masks=masks)
    model, x = (t.to(memory_format=torch.channels_last) for t in (model, x))
    del LAYOUTS[:]
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert len(LAYOUTS) >= 19 and all(LAYOUTS)
    for name, score in scores.items():
        close(score, expected[name], DEEP_NET[torch.float32], name)


@pytest.mark.parametrize(
    "function",
    [
        F.relu, F.gelu, F.silu, F.hardswish, lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2), lambda x: F.interpolate(x, scale_factor=2), torch.sigmoid,
        lambda x: x + x.relu(), lambda x: x * 2, lambda x: F.group_norm(x, 2),
        lambda x: torch.cat([x, x], 1), lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: x * x.sigmoid(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("criterion", CRITERIA)
def test_functions_between_them_keep_it(function, criterion):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = function(self.first(x))
            note(x)
            return self.last(x[:, :4].mean((2, 3)))

    torch.manual_seed(0)
    model = Net().eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    masks = nets.random_masks(model, 0.5)
    plain = function(model.first(x)).is_contiguous(memory_format=torch.channels_last)
    del LAYOUTS[:]
    pxfast.score(model, x, criterion=criterion, masks=masks)
    assert LAYOUTS and set(LAYOUTS) == {plain}
