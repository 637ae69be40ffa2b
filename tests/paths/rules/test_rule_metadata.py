"""What code asks of a tensor: the same answers as from a plain one; values only where there are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from middles import behind, network
from nets import random_batch, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.errors import NoRuleError
from pxfast.paths.network import NeedsValuesError
from pxfast.paths.passes import Passes

Z = torch.linspace(-2, 3, 12).view(3, 4)

# the answer does not depend on the entries
METADATA: dict[str, Callable[[Tensor], Any]] = {
    **{
        name: lambda x, name=name: getattr(x, name)
        for name in (
            "shape", "dtype", "device", "layout", "ndim", "requires_grad", "grad", "grad_fn",
            "is_leaf", "is_sparse", "is_quantized", "is_meta", "is_mkldnn", "is_nested", "itemsize",
            "nbytes", "is_cpu", "is_cuda", "is_mps", "is_xpu",
        )
    },
    **{
        name: lambda x, name=name: getattr(x, name)()
        for name in (
            "size", "dim", "numel", "nelement", "stride", "storage_offset", "is_contiguous",
            "is_floating_point", "is_complex", "element_size", "ndimension", "__len__", "is_conj",
            "is_neg", "is_signed", "is_inference", "get_device",
        )
    },
    **{
        f"torch.{name}": lambda x, name=name: getattr(torch, name)(x)
        for name in ("is_floating_point", "numel", "is_complex", "is_tensor")
    },
    "size of a dimension": lambda x: x.size(-1),
    "strides of a dimension": lambda x: x.stride(1),
    "len": len,
    "isinstance": lambda x: isinstance(x, Tensor),
}  # fmt: skip
# the answer depends on the entries
VALUES: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x[1, 2].item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "np.asarray": np.asarray,
    "bool": lambda x: bool(x[0, 0] > 1),
    "float": lambda x: float(x[0, 0]),
    "int": lambda x: int(x[2, 3]),
    "index": lambda x: list(range(12))[x.argmax()],
    "in": lambda x: 3.0 in x,
    "is_nonzero": lambda x: x[0, 0].is_nonzero(),
    "torch.is_nonzero": lambda x: torch.is_nonzero(x[0, 0]),
    "torch.equal": lambda x: torch.equal(x, Z),
    "Tensor.equal": lambda x: x.equal(Z),
    "torch.allclose": lambda x: torch.allclose(x, Z),
    "Tensor.allclose": lambda x: x.allclose(Z + 1),
}
# tensors that carry no path
PATHLESS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        f"{space.__name__}.{name}": lambda x, name=name, space=space: getattr(space, name)(x)
        for name in ("argmax", "argmin", "isnan", "isinf", "isfinite", "all", "any", "sign")
        for space in (torch, Tensor)
    },
    **{
        f"{space.__name__}.{name}": lambda x, name=name, space=space: getattr(space, name)(x, 0.5)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for space in (torch, Tensor)
    },
    **{
        f"{space.__name__}.{name}": lambda x, name=name, space=space: getattr(space, name)(
            x > 0, x < 1
        )
        for name in ("logical_and", "logical_or", "logical_xor")
        for space in (torch, Tensor)
    },
    **{
        f"{name} in place": lambda x, name=name: getattr(x > 0, name)(x < 1)
        for name in ("logical_and_", "logical_or_", "logical_xor_")
    },
    "logical_not": lambda x: torch.logical_not(x > 0),
    "Tensor.logical_not": lambda x: (x > 0).logical_not(),
    "logical_not_": lambda x: (x > 0).logical_not_(),
    "operators": lambda x: ((x > 0) & (x < 1)) | ((x > 2) ^ ~(x == 0)),
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full_like": lambda x: torch.full_like(x, 2.0),
    "new_zeros": lambda x: x.new_zeros(2, 3),
    "new_ones": lambda x: x.new_ones((2,)),
    "new_full": lambda x: x.new_full((2, 2), 0.5),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "bool": lambda x: x.bool(),
    "int": lambda x: x.int(),
    "long": lambda x: x.long(),
}
RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "empty_like": torch.empty_like,
    "new_empty": lambda x: x.new_empty(3, 4),
}
TEXT: dict[str, Callable[[Tensor], Any]] = {
    "repr": repr,
    "format": lambda x: f"{x}",
    "hash": lambda x: x in {x: 1},
    "_version": lambda x: x._version,
}
CALLS = METADATA | VALUES | PATHLESS | RANDOM | TEXT


def asked(function: Callable[[Tensor], Any], **network: bool) -> Any:
    """What a model's forward gets when it calls a function of a path tensor."""
    answers: list[Any] = []

    def operation(x: Tensor) -> Tensor:
        answers.append(function(x))
        return x

    behind(operation, Z.clone(), **network)
    return answers[0]


@pytest.mark.parametrize("name", METADATA)
def test_metadata_in_every_pass(name):
    expected = METADATA[name](Z.clone())
    assert asked(METADATA[name]) == expected
    if name != "is_meta":  # g is run on shapes alone
        assert asked(METADATA[name], gates=False, squares=True, values=False) == expected


@pytest.mark.parametrize("name", VALUES)
def test_values_are_the_true_network_s_or_asked_for(name):
    assert np.array_equal(asked(VALUES[name]), VALUES[name](Z))
    with pytest.raises(NeedsValuesError):
        asked(VALUES[name], gates=False, squares=True, values=False)


@pytest.mark.parametrize("name", PATHLESS)
def test_tensors_without_a_path(name):
    answer = asked(PATHLESS[name])
    assert answer.path is None
    assert torch.equal(answer.value, PATHLESS[name](Z))


@pytest.mark.parametrize("name", RANDOM)
def test_new_tensors_without_a_path(name):
    answer = asked(RANDOM[name])
    assert answer.path is None and answer.value.shape == Z.shape


def test_text_and_hash():
    assert asked(TEXT["repr"]) == "PathTensor(shape=(3, 4), dtype=torch.float32)"
    assert "PathTensor" in asked(TEXT["format"])
    assert asked(TEXT["hash"]) is True
    assert asked(TEXT["_version"]) == 0


@pytest.mark.parametrize(
    "function", [copy.deepcopy, lambda x: torch.zeros(3, 4).copy_(x), lambda x: x._base]
)
def test_copies_outside_the_rules_are_errors(function):
    with pytest.raises(NoRuleError, match="has no rule"):
        asked(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum().backward(),
        lambda x: x.register_hook(lambda gradient: None),
        lambda x: x.retain_grad(),
    ],
)
def test_gradients_are_refused(function):
    with pytest.raises(NoRuleError, match="was called while scoring"):
        asked(function)


class Looking(nn.Module):
    """Takes a branch that depends on a value, and scales by a number read from the tensor."""

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1e6 or x.mean().item() > 1e6:
            return x * 0
        return x * 2


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_control_flow_on_values(criterion):
    x = random_batch((2, 3, 3), 2).double()
    scores, expected = (
        pxfast.score(network(build, (4, 3, 3), 3), x, criterion=criterion)
        for build in (Looking, nn.Identity)
    )
    for name in expected:
        torch.testing.assert_close(scores[name], expected[name], rtol=1e-12, atol=0)


class Masked(nn.Module):
    """Attention under a mask that is drawn in the forward from a tensor like the input, as
    torchvision's Swin does; the branch asks for one of its entries."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).chunk(3, -1)
        regions = x.new_zeros(x.shape[1])
        regions[2:] = 1
        rows, columns = torch.ones_like(regions)[:, None] * regions[:, None], regions[None]
        mask = (rows - columns).masked_fill(rows != columns, -100.0)
        if mask[0, 1] == 0 and float(mask.min()) == -100:
            v = v * x.new_full((1,), 2.0)
        return self.head((q @ k.mT + mask).softmax(-1) @ v).mean(1)


def test_tensors_like_others_are_constants_without_values(monkeypatch):
    """The kernel pass runs on shapes alone, and finds what it finds with values."""
    model, x = seeded(Masked, 1).double(), random_batch((5, 4)).double()
    ran: list[bool] = []
    make = Passes._network

    def noted(self: Passes, **kind: bool) -> Any:
        ran.append(kind["values"])
        return make(self, **kind)

    monkeypatch.setattr(Passes, "_network", noted)
    scores = pxfast.score(model, x)
    assert ran and not any(ran)
    monkeypatch.setattr(
        Passes, "_network", lambda self, **kind: make(self, **kind | {"values": True})
    )
    expected = pxfast.score(model, x)
    for name in expected:
        close(scores[name], expected[name], SMALL_NET[torch.float64], name)


def test_what_is_written_into_a_constant_is_data():
    """Zeros that the data are written into are no fixed mask: in g they forbid nothing."""

    def written(x: Tensor) -> bool:
        mask = x.new_zeros(x.shape)
        assert mask.constant and mask.clone().constant
        mask[:, 1:] = x[:, 1:]
        return mask.constant

    assert not asked(written)
    assert not asked(written, values=False, squares=True)
