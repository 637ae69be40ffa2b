"""Weights wherever they come from, under whatever masks, named after the module's attribute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import random_batch, random_masks, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import pxfast
from pxfast.errors import MaskError
from pxfast.reference import px

CRITERIA = ("px", "px-joint")
SHAPE = (6, 5)  # of the inner linear layer's weight


def keep(shape: Any = SHAPE, seed: int = 0, density: float = 0.6) -> Tensor:
    """A random 0/1 mask."""
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density).float()
    mask.flatten(1)[:, 0] = 1
    return mask


class Net(nn.Module):
    """A layer with a peculiar weight between two plain ones."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 5), inner, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.inner(F.relu(self.first(x)))))


def net(inner: Callable[[], nn.Module]) -> nn.Module:
    return seeded(lambda: Net(inner()), 0).double()


def plain(model: nn.Module, weight: Tensor) -> nn.Module:
    """The same network with a plain inner layer that holds this weight."""
    twin = net(lambda: nn.Linear(5, 6))
    with torch.no_grad():
        for name in ("first.weight", "first.bias", "last.weight", "last.bias", "inner.bias"):
            twin.get_parameter(name).copy_(model.get_parameter(name))
        twin.inner.weight.copy_(weight)
    return twin


def assert_same(actual: Any, expected: Any) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        close(actual[name], expected[name], SMALL_NET[torch.float64], name)


# ---- masks --------------------------------------------------------------------------------------


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


class MaskStep(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


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


# ---- θ computed from parameters ------------------------------------------------------------------


class Standardised(nn.Linear):
    """Weight standardisation with a learned gain, written in one of two orders."""

    def __init__(self, gain_first: bool) -> None:
        super().__init__(5, 6)
        self.gain, self.gain_first = nn.Parameter(torch.rand(6, 1)), gain_first

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, 1, keepdim=True)
        standard = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        weight = self.gain * standard if self.gain_first else standard * self.gain
        return F.linear(x, weight, self.bias)


class Batched(nn.Linear):
    """timm's way: a BatchNorm over the weights themselves."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, 6, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
        return F.linear(x, weight.reshape_as(self.weight), self.bias)


class Cosine(nn.Linear):
    """Rows of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class LowRank(nn.Linear):
    """A weight with a low-rank update."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.a, self.b = nn.Parameter(torch.rand(6, 2)), nn.Parameter(torch.rand(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.a @ self.b, self.bias)


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.tanh()


def scaled() -> nn.Module:
    layer = nn.Linear(5, 6)
    parametrize.register_parametrization(layer, "weight", Scaled())
    return layer


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "parametrizations.weight_norm": lambda: parametrizations.weight_norm(nn.Linear(5, 6)),
    "parametrizations.spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(5, 6)),
    "parametrizations.orthogonal": lambda: parametrizations.orthogonal(nn.Linear(5, 6)),
    "orthogonal, cayley": lambda: parametrizations.orthogonal(
        nn.Linear(5, 6), orthogonal_map="cayley"
    ),
    "own parametrization": scaled,
    "hooks: weight_norm": lambda: nn.utils.weight_norm(nn.Linear(5, 6)),
    "hooks: weight_norm of everything": lambda: nn.utils.weight_norm(nn.Linear(5, 6), dim=None),
    "hooks: spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(5, 6)),
    "standardised": lambda: Standardised(gain_first=False),
    "standardised, gain first": lambda: Standardised(gain_first=True),
    "standardised by BatchNorm": lambda: Batched(5, 6),
    "cosine": lambda: Cosine(5, 6),
    "low rank": LowRank,
}


def used_weight(layer: nn.Module) -> Tensor:
    """The weight that a layer applies, read off its response to unit vectors."""
    return (layer(torch.eye(5, dtype=torch.float64)) - layer.bias).T.detach()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights(name, criterion):
    """θ is the tensor that reaches the operation; masks apply to it; nothing moves."""
    model = net(COMPUTED[name])
    before = copy.deepcopy(model.state_dict())
    x = random_batch((4,), 3).double()
    reference = plain(model, used_weight(model.inner))
    attributes = {id(m): dict(vars(m)) for m in model.modules()}
    for masks in (None, random_masks(reference, 0.6)):
        scores = pxfast.score(model, x, criterion=criterion, masks=masks)
        assert_same(scores, px.score(reference, x, criterion=criterion, masks=masks))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for module in model.modules():
        now = vars(module)
        assert now.keys() == attributes[id(module)].keys()
        for key, value in attributes[id(module)].items():
            assert not isinstance(value, Tensor) or now[key] is value, key


@pytest.mark.parametrize("criterion", CRITERIA)
def test_standardised_convolutions(criterion):
    class Standard(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    model = seeded(
        lambda: nn.Sequential(Standard(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), 0
    ).double()
    reference = copy.deepcopy(model)
    reference[0].__class__ = nn.Conv2d
    with torch.no_grad():
        weight = model[0].weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        reference[0].weight.copy_(weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5))
    x, masks = random_batch((2, 4, 4), 3).double(), random_masks(reference, 0.6)
    scores = pxfast.score(model, x, criterion=criterion, masks=masks)
    assert_same(scores, px.score(reference, x, criterion=criterion, masks=masks))


# ---- tied and frozen -----------------------------------------------------------------------------


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


def test_masks_of_another_shape_are_refused_by_name():
    model = net(COMPUTED["standardised"])
    with pytest.raises(MaskError, match=r"inner\.weight must have the weight's shape \[6, 5\]"):
        pxfast.score(model, torch.randn(2, 4).double(), masks={"inner.weight": torch.ones(5, 6)})
