"""Every form of data, autocast, the progress bar, and interruption."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import nets
import pytest
import torch
import torch.nn.functional as F
from tolerances import SMALL_NET, close
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pxfast
from pxfast.batches import batches, check_finite
from pxfast.errors import DataError
from pxfast.paths.tensor import Interpreter

CRITERIA = ("px", "px-joint")
X, Y = nets.random_batch((4,), 6), torch.arange(6) % 2


class Two(nn.Module):
    """Takes two inputs, one by position or both by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor, flag: Any = None) -> Tensor:
        return self.head(F.relu(self.a(left) + self.b(right)))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def two() -> nn.Module:
    return nets.seeded(Two, 0)


LEFT, RIGHT = X[:, :2], X[:, 2:]
NAMED = {"left": LEFT, "right": RIGHT}
FORMS: dict[str, Any] = {
    "a list and labels": ([LEFT, RIGHT], Y),
    "a tuple and labels": ((LEFT, RIGHT), Y),
    "a list of batches": [((LEFT[:2], RIGHT[:2]), Y[:2]), ([LEFT[2:], RIGHT[2:]], Y[2:])],
    "a dictionary": NAMED,
    "a dictionary with labels": NAMED | {"label": Y, "flag": "other things"},
    "a dictionary and labels": (NAMED, Y),
    "a list of dictionaries": [{name: x[i : i + 3] for name, x in NAMED.items()} for i in (0, 3)],
    "a generator": (((LEFT[i : i + 2], RIGHT[i : i + 2]), Y) for i in (0, 2, 4)),
}


def assert_same(actual: Any, expected: Any) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        close(actual[name], expected[name], SMALL_NET[torch.float32], name)


@pytest.mark.parametrize("name", FORMS)
def test_several_inputs(name):
    model = two()
    masks = nets.random_masks(model, 0.7)
    joined = pxfast.score(model, {"left": LEFT, "right": RIGHT}, masks=masks)
    assert_same(pxfast.score(model, FORMS[name], masks=masks), joined)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_loaders(criterion):
    model = nets.mlp()
    masks = nets.random_masks(model, 0.7)
    expected = pxfast.score(model, X, criterion=criterion, masks=masks)
    for loader in (
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True, pin_memory=False),
        DataLoader(TensorDataset(X, Y), batch_size=4, num_workers=1),
        DataLoader(Stream(), batch_size=4),
        DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1, 2], [3], [4, 5]]),
    ):
        assert_same(pxfast.score(model, loader, criterion=criterion, masks=masks), expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected a tensor, an"),
        ("images", "expected a tensor, an"),
        ([], "there are no batches"),
        (iter(()), "there are no batches"),
        ([["a", "b"]], "holds no floating-point tensor"),
        (Y, "got a tensor of int64. Convert them"),
        ({"pixels": Y}, "got a dictionary of pixels: a tensor of int64"),
        ([X.numpy()], "got ndarray; make a tensor of it with torch.as_tensor"),
        ([()], "a batch must be a tensor"),
        ([X, 3], "a batch must be a tensor"),
        ({"labels": Y}, "holds no floating-point tensor"),
        ({}, "got an empty dictionary"),
        (TensorDataset(X), "got TensorDataset; make batches of its samples with torch.utils.data"),
        (TensorDataset, "such batches, got type$"),
        ([X, X.to("meta")], r"batch 2 holds an input of shape \[6, 4\] that is on the meta device"),
        (X.to_sparse(), "that is torch.sparse_coo; expected dense tensors"),
        (torch.tensor(1.0), "batch 1 is empty"),
        ([X, X[:0]], "batch 2 is empty"),
    ],
)
def test_what_is_no_data(data, message):
    with pytest.raises(DataError, match=message):
        list(batches(data))


BAD = torch.ones(6, 4)
BAD[2, 3], BAD[2, 1], BAD[4, 0] = math.nan, -math.inf, math.inf


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (BAD, "input 0: 3 of 24 entries, the first of them -inf at [2, 1] (sample 2),"),
        (((X, BAD), Y), "input 1: 3 of 24 entries, the first of them -inf at [2, 1] (sample 2),"),
        ({"x": X, "pixels": BAD}, "input 'pixels': 3 of 24 entries, the first of them -inf at"),
        ({"pair": [X, {"deep": BAD}]}, "input 'pair'[1]['deep']: 3 of 24 entries, the first"),
        (((X, BAD[2]), Y), "input 1: 2 of 4 entries, the first of them -inf at [1], counted"),
        (((X, BAD[2, 3]), Y), "input 1: 1 of 1 entries, the first of them nan at [], counted"),
    ],
)
def test_entries_that_are_not_finite_are_located(data, said):
    (batch,) = batches(data)
    with pytest.raises(DataError, match=re.escape(f"batch 7 holds NaN or infinity in {said}")):
        check_finite(batch, 7)


def test_autocast_leaves_path_sums_alone():
    """Without gates there is nothing to round: not one bit changes."""
    model = nets.seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), 0)
    full = pxfast.score(model, X, criterion="px-joint")
    for dtype in (torch.bfloat16, torch.float16):
        half = pxfast.score(model, X, criterion="px-joint", dtype=dtype)
        assert all(torch.equal(half[name], full[name]) for name in full)
        assert half["0.weight"].dtype == torch.float32
    gated = nets.mlp(seed=1)
    masks = nets.random_masks(gated, 0.7)
    seen: list[torch.dtype] = []
    gated[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    pxfast.score(gated, X, masks=masks, dtype=torch.bfloat16)
    assert torch.bfloat16 in seen  # beside the pass on shapes alone


@pytest.mark.parametrize(("progress", "shown"), [(None, False), (False, False), (True, True)])
def test_the_progress_bar(capsys, progress, shown):
    pxfast.score(nets.mlp(), list(X.split(2)), criterion="px-joint", progress=progress)
    printed = capsys.readouterr().err
    assert ("score" in printed and "/3" in printed) is shown
    assert shown or not printed


class Interrupting(nn.Module):
    """Is interrupted at the n-th call."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.inner, self.calls = nets.mlp(), [calls]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        self.calls[0] -= 1
        if self.calls[0] <= 0:
            raise KeyboardInterrupt
        return hidden


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("calls", [1, 2])
def test_interruption_leaves_nothing_behind(criterion, calls):
    model = Interrupting(calls).train()
    nn.utils.prune.random_unstructured(model.inner[0], "weight", amount=0.5)
    attribute = model.inner[0].weight
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    masks = {"inner.4.weight": nets.random_masks(nets.mlp(), 0.7)["4.weight"]}
    with pytest.raises(KeyboardInterrupt):
        pxfast.score(model, list(X.split(2)), criterion=criterion, masks=masks)
    assert not Interpreter._active and not _get_current_function_mode_stack()
    assert all(module.training for module in model.modules())
    assert model.inner[0].weight is attribute
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.calls[0] = 100
    assert model(X).requires_grad
    again = pxfast.score(model, X, criterion=criterion, masks=masks)
    assert again["inner.4.weight"].any()


def test_an_interrupted_backward_leaves_nothing_behind(monkeypatch):
    from pxfast.paths.rules import squared

    model = nets.mlp()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(squared, "cotangent", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pxfast.score(model, X, criterion="px-joint")
    assert not Interpreter._active and all(p.grad is None for p in model.parameters())
    assert pxfast.score(model, X, criterion="px-joint").totals()["0.weight"] == pytest.approx(1)
