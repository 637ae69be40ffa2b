"""Passes on shapes alone: the same shapes as torch's meta kernels, without torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.paths.shapes import Shapes, common_shape

X = torch.empty(2, 4, 6, 8, device="meta")
Y = torch.empty(4, 1, 8, device="meta")
LAST = X.to(memory_format=torch.channels_last)
V = torch.empty(3, 4, device="meta", dtype=torch.float64)
WEIGHT = torch.empty(8, 2, 3, 2, device="meta")
INDEX = torch.zeros(2, 4, 3, 8, dtype=torch.long, device="meta")
CALLS = {
    "multiply": lambda: X * Y,
    "a float": lambda: X / 2,
    "an int to a float": lambda: INDEX.sigmoid(),
    "compare": lambda: X > 0,
    "where": lambda: torch.where(X > 0, 1.0, Y),
    "power": lambda: X**-2,
    "two dtypes": lambda: V[:, :1] * torch.empty(4, device="meta"),
    "a number of another dtype": lambda: Y * torch.ones((), dtype=torch.float64),
    "gelu": lambda: F.gelu(LAST),
    "hardswish": lambda: F.hardswish(LAST),
    "softmax": lambda: X.softmax(1),
    "channels last": lambda: LAST.square() + X,
    "expanded": lambda: Y.expand(2, 4, 6, 8).flatten(1),
    "to contiguous": lambda: LAST.contiguous(),
    "permuted": lambda: X.permute(0, 2, 3, 1).exp().permute(0, 3, 1, 2).view(2, 4, 48),
    "sum": lambda: X.sum(),
    "sum of dimensions": lambda: X.sum((1, -1)),
    "sum in another dtype": lambda: X.sum(0, keepdim=True, dtype=torch.float64),
    "mean": lambda: X.mean((2, 3), keepdim=True),
    "variance": lambda: torch.var(X, [2, 3], correction=0, keepdim=True),
    "any": lambda: (X > 0).any(1),
    "largest": lambda: X.amax(),
    "norm": lambda: torch.linalg.vector_norm(X, dim=-1),
    "old norm": lambda: torch.norm(X, dim=(2, 3), keepdim=True),
    "linear": lambda: F.linear(X, torch.empty(5, 8, device="meta")),
    "addmm": lambda: F.linear(V.float(), torch.empty(5, 4, device="meta"), Y[0, 0, :5]),
    "bmm": lambda: torch.bmm(X[0], X[0].mT),
    "cat": lambda: torch.cat([X, torch.empty(0, device="meta"), X.double()], -1),
    "stack": lambda: torch.stack([X, X], -2),
    "convolution": lambda: F.conv2d(X, WEIGHT, None, (2, 1), (1, 0), (1, 2), 2),
    "transposed": lambda: F.conv_transpose2d(X, WEIGHT[:4], None, 2, 1, (1, 0), 2),
    "max-pool": lambda: F.max_pool2d_with_indices(X, 3, 2, 1),
    "max-pool, ceiling": lambda: F.max_pool2d(X, 2, 3, 1, ceil_mode=True),
    "average pool": lambda: F.avg_pool2d(X, (2, 3), ceil_mode=True),
    "adaptive": lambda: F.adaptive_avg_pool2d(X, (3, 5)),
    "global": lambda: F.adaptive_avg_pool2d(X, 1),
    "adaptive max": lambda: F.adaptive_max_pool2d(X, 2, return_indices=True),
    "pad": lambda: F.pad(X, (1, 2, 0, -1)),
    "gather": lambda: X.gather(2, INDEX),
    "repeat_interleave": lambda: Y.repeat_interleave(3, 0),
    "alike": lambda: torch.ones_like(LAST, dtype=torch.bool),
    "roll": lambda: X.roll(1, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_shape_and_dtype_are_those_of_torch(name):
    expected = CALLS[name]()
    with Shapes():
        actual = CALLS[name]()
    if isinstance(expected, Tensor):
        expected, actual = (expected,), (actual,)
    for one, other in zip(actual, expected, strict=True):
        assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


def test_layouts_are_kept():
    with Shapes():
        assert F.relu(LAST).is_contiguous(memory_format=torch.channels_last)
        assert (LAST * Y).is_contiguous(memory_format=torch.channels_last)
        assert LAST.contiguous().is_contiguous()


def test_tensors_elsewhere_are_left_alone():
    x = torch.arange(4.0)
    with Shapes():
        assert torch.equal(x.square(), torch.tensor([0.0, 1.0, 4.0, 9.0]))
        assert torch.zeros_like(X, device="cpu").device.type == "cpu"


def test_shapes_that_do_not_broadcast():
    assert common_shape((4, 1), (3,), (1, 1, 0)[:2]) == (4, 3)
    assert common_shape((2, 1), (0,)) == (2, 0)
    with pytest.raises(RuntimeError, match="do not broadcast"):
        common_shape((2, 3), (4,))


FRESH = """
import sys, torch, pxfast
from pxfast import models
model = models.resnet20().eval()
compiler = ("torch._dynamo", "torch._inductor", "sympy")
before = {name for name in compiler if name in sys.modules}
for criterion in ("px", "px-joint"):
    pxfast.score(model, torch.randn(1, 3, 16, 16), criterion=criterion)
imported = [name for name in compiler if name in sys.modules and name not in before]
assert not imported, f"scoring imported {imported}"
"""


def test_scoring_in_a_fresh_process_imports_no_compiler():
    run = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
