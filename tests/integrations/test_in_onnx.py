from __future__ import annotations

import copy

import pytest
import torch
from libraries import library
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.errors import MaskError

onnx = library("onnx")
library("onnxscript")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from pxfast.integrations.onnx import export, stored_as  # noqa: E402


class Net(nn.Module):
    """A BatchNorm that exporters fold, attention whose matrices they transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(4, 5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.up(tokens.transpose(1, 2).reshape_as(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    masks = pxfast.Masks({name: torch.rand(p.shape) < 0.3 for name, p in weights.items()})
    return masks.apply_(model)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(net: Net, images: Tensor) -> torch.onnx.ONNXProgram:
    return export(net, (images,))


def baked_weights(net: Net) -> dict[str, Tensor]:
    plain = pxfast.bake(net)
    return {name: p.detach() for name, p in plain.named_parameters() if p.dim() > 1}


def test_every_zero_is_in_place(net, program):
    masks, weights = pxfast.Masks.from_model(net), baked_weights(net)
    found = stored_as(program, weights)
    assert list(found) == list(masks)
    initializers = program.model.graph.initializers
    for name, mask in masks.items():
        stored = torch.from_numpy(initializers[found[name]].const_value.numpy().copy())
        layout = mask if stored.shape == mask.shape else mask.T
        assert torch.equal(stored != 0, layout), name


def test_the_file_computes_what_the_model_does(net, images, tmp_path):
    file = tmp_path / "model.onnx"
    export(net, (images,), file)
    outputs = ReferenceEvaluator(onnx.load(file)).run(None, {"x": images.numpy()})
    close(torch.from_numpy(outputs[0]), net(images).detach(), SMALL_NET[torch.float32])


def test_the_model_stays_as_it_was(net, images):
    state, keys = copy.deepcopy(net.state_dict()), list(net.state_dict())
    net.train()
    try:
        export(net, (images,))
        assert net.training and net.conv.training
    finally:
        net.eval()
    assert list(net.state_dict()) == keys
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_torch_export_holds_the_zeros(net, images):
    plain = pxfast.bake(net)
    exported = torch.export.export(plain, (images,))
    for name, mask in pxfast.Masks.from_model(net).items():
        assert torch.equal(exported.state_dict[name] != 0, mask), name
    assert torch.equal(exported.module()(images), net(images))


def test_masks_of_a_baked_model_are_given(net, images):
    plain = pxfast.bake(net)
    export(plain, (images,), masks=pxfast.Masks.from_model(net))


def test_masks_that_were_not_applied_are_refused(net, images):
    dense = Net().eval()
    with pytest.raises(
        MaskError, match=r"'conv.weight' is not 0 where its mask .* by masks.apply_"
    ):
        export(dense, (images,), masks=pxfast.Masks.from_model(net))


@pytest.mark.parametrize("name", ["conv.weight", "attention.in_proj_weight"])
def test_a_zero_that_is_lost_is_seen(net, program, name):
    weights = baked_weights(net)
    flat = weights[name].view(-1)
    flat[int((flat != 0).nonzero()[0])] = 0  # one more zero than the program has
    with pytest.raises(MaskError, match=f"no initialiser with the zeros of '{name}'"):
        stored_as(program, weights)
