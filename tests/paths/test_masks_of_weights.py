"""Masks wherever they come from: the model's own, given ones, both together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import random_batch, random_masks
from peculiar import SHAPE, MaskStep, Scaled, assert_same, keep, net, plain, used_weight
from scored import CRITERIA
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import pxfast
from pxfast.reference import px


class Masked(nn.Linear):
    """Computes its masked weight itself, in one of many ways."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor], store: str = "buffer") -> None:
        super().__init__(5, 6)
        if store == "buffer":
            self.register_buffer("weight_mask", keep())
        elif store == "frozen":
            self.weight_mask = nn.Parameter(keep(), requires_grad=False)
        else:
            self.weight_mask = nn.Parameter(keep())
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.combine(self.weight, self.weight_mask), self.bias)


def pruned() -> nn.Module:
    layer = nn.Linear(5, 6)
    return prune.custom_from_mask(layer, "weight", keep())


def pruned_twice() -> nn.Module:
    layer = nn.Linear(5, 6)
    first = keep()
    first[keep(seed=9) == 0] = 1  # the two masks together are keep()
    second = torch.where((first == 1) & (keep() == 0), 0.0, 1.0)
    prune.custom_from_mask(layer, "weight", first)
    return prune.custom_from_mask(layer, "weight", second)


def parametrized() -> nn.Module:
    layer = nn.Linear(5, 6)
    parametrize.register_parametrization(layer, "weight", MaskStep(keep()))
    return layer


MASKED: dict[str, Callable[[], nn.Module]] = {
    "torch.nn.utils.prune": pruned,
    "prune, twice": pruned_twice,
    "parametrization": parametrized,
    "mask * weight": lambda: Masked(lambda w, m: m * w),
    "weight * mask": lambda: Masked(lambda w, m: w * m),
    "torch.mul": lambda: Masked(lambda w, m: torch.mul(m, w)),
    "Tensor.mul": lambda: Masked(lambda w, m: w.mul(m)),
    "a bool mask": lambda: Masked(lambda w, m: w * m.bool()),
    "a frozen parameter": lambda: Masked(lambda w, m: w * m, "frozen"),
    "a parameter that is trained": lambda: Masked(lambda w, m: m * w, "parameter"),
    "masked_fill": lambda: Masked(lambda w, m: w.masked_fill(m == 0, 0.0)),
    "torch.where": lambda: Masked(lambda w, m: torch.where(m > 0, w, torch.zeros_like(w))),
    "where with a number": lambda: Masked(lambda w, m: torch.where(m == 0, 0.0, w)),
    "detached": lambda: Masked(lambda w, m: w.detach() * m),
    "data": lambda: Masked(lambda w, m: w.data * m),
    "cast": lambda: Masked(lambda w, m: (w * m).to(w.dtype).contiguous()),
    "through a view": lambda: Masked(lambda w, m: (w.view(-1) * m.flatten()).view(SHAPE)),
    "transposed": lambda: Masked(lambda w, m: (w.t() * m.t()).t()),
    "in two factors": lambda: Masked(lambda w, m: w * m * (torch.arange(5) < 9)),
}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", MASKED)
def test_own_masks_and_given_ones(name, criterion):
    """As the plain network under both masks together, also where the model's own zeros in θ."""
    model = net(MASKED[name])
    stored = getattr(model.inner, "weight_orig", None)
    if stored is None:
        stored = dict(model.inner.named_parameters()).get("parametrizations.weight.original")
    weight = model.inner.weight if stored is None else stored
    reference = plain(model, weight)
    x, given = random_batch((4,), 3).double(), random_masks(reference, 0.7)
    own = {"inner.weight": keep().bool()}
    for masks, together in (
        (None, own), (given, given | {"inner.weight": given["inner.weight"] & keep().bool()})
    ):  # fmt: skip
        scores = pxfast.score(model, x, criterion=criterion, masks=masks)
        assert_same(scores, px.score(reference, x, criterion=criterion, masks=together))
        assert not scores["inner.weight"][keep() == 0].any()


def test_masks_by_row():
    """A mask of output channels that broadcasts over the weight."""
    rows = torch.tensor([1.0, 0, 1, 1, 0, 1])[:, None]
    model = net(lambda: Masked(lambda w, m: w * rows))
    reference = plain(model, model.inner.weight)
    x = random_batch((4,), 3).double()
    expected = px.score(reference, x, masks={"inner.weight": rows.expand(SHAPE)})
    assert_same(pxfast.score(model, x), expected)


def pruned_weight_norm() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(5, 6))
    parametrize.register_parametrization(layer, "weight", MaskStep(keep()))
    return layer


def scaled_after() -> nn.Module:
    layer = parametrized()
    parametrize.register_parametrization(layer, "weight", Scaled())
    return layer


def normed_after() -> nn.Module:
    return Masked(lambda w, m: 3 * (w * m) / (1 + (w * m).norm()))


def spectral_before() -> nn.Module:
    return nn.utils.spectral_norm(normed_after())


MASKED_AND_COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight norm, then a mask": pruned_weight_norm,
    "a mask, then a scale": scaled_after,
    "a mask, then a norm": normed_after,
    "a spectral norm, then a mask and a norm": spectral_before,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", MASKED_AND_COMPUTED)
def test_masks_of_computed_weights(name, criterion):
    model = net(MASKED_AND_COMPUTED[name])
    reference = plain(model, used_weight(model.inner))
    x, given = random_batch((4,), 3).double(), random_masks(reference, 0.7)
    together = given | {"inner.weight": given["inner.weight"] & keep().bool()}
    scores = pxfast.score(model, x, criterion=criterion, masks=given)
    assert_same(scores, px.score(reference, x, criterion=criterion, masks=together))
    own = px.score(reference, x, criterion=criterion, masks={"inner.weight": keep()})
    assert_same(pxfast.score(model, x, criterion=criterion), own)
