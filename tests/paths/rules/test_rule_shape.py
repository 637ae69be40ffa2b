"""Operations that move entries around or interpolate between them, in every spelling.

What each does to paths is read off its response to unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from middles import Case, Rule, as_it_is, check, gate, linear, of
from torch import Tensor, nn

import pxfast
from pxfast.errors import NoRuleError

VECTOR, TOKENS, IMAGE, VOLUME = (4,), (4, 6), (4, 6, 4), (2, 3, 2, 4)
TAKEN = torch.tensor([3, 0, 0, 2])

# by shape: what the middle does
MOVES: dict[tuple[int, ...], dict[str, Callable[[Tensor], Tensor]]] = {
    VECTOR: {
        "torch.t": lambda x: torch.t(torch.t(x)),
        "Tensor.t": lambda x: x.t().t(),
        "T": lambda x: x.T.T,
        "H": lambda x: x.H.mT,
        "transpose_": lambda x: x.clone().transpose_(0, 1).t_(),
        "squeeze": lambda x: torch.unsqueeze(x, 1).squeeze(1),
        "torch.squeeze": lambda x: torch.squeeze(x.unsqueeze(-1), -1),
        "in place": lambda x: x.clone().unsqueeze_(1).squeeze_(1),
        "None": lambda x: x[:, None, :, None][..., 0],
        "fliplr": lambda x: torch.fliplr(x) + 0.5 * x.fliplr(),
        "ravel": lambda x: x[:, :2].ravel().view(-1, 2) + torch.ravel(x[:, 2:]).reshape(-1, 2),
        "hsplit": lambda x: torch.hsplit(x, 2)[1],
        "Tensor.hsplit": lambda x: x.hsplit([1, 3])[1],
        "diagonal": lambda x: torch.diagonal(x.view(-1, 2, 2), dim1=1, dim2=2),
        "Tensor.diagonal": lambda x: x.reshape(-1, 2, 2).diagonal(1, 1, 2),
        "view_as": lambda x: x.view_as(torch.zeros(x.shape[0], 2, 2)),
        "reshape_as": lambda x: x.reshape_as(x.view(-1, 2, 2)),
        "expand_as": lambda x: x[:, :1].expand_as(x),
        "adding adds dimensions": lambda x: (x + torch.ones(2, 1, 4).to(x)).transpose(0, 1)[:, 1:],
        "choosing adds dimensions": lambda x: torch.where(
            torch.tensor([True, False]).view(2, 1, 1), x, 0.0
        ).transpose(0, 1),
    },
    TOKENS: {
        "torch.flatten": lambda x: torch.flatten(x.transpose(1, 2), 1),
        "Tensor.flatten": lambda x: x.flatten(1, 2),
        "torch.unflatten": lambda x: torch.unflatten(x, 2, (3, 2))[..., 1],
        "Tensor.unflatten": lambda x: x.unflatten(-1, (2, -1)).sum(-1),
        "torch.reshape": lambda x: torch.reshape(x, (-1, 8, 3)),
        "Tensor.reshape": lambda x: x.mT.reshape(-1, 3, 8)[:, 1],
        "Tensor.view": lambda x: x.view(x.size(0), -1)[:, 3:9],
        "view, transposed": lambda x: x.transpose(1, 2).contiguous().view(-1, 24)[:, 1:8],
        "torch.permute": lambda x: torch.permute(x, (0, 2, 1))[:, :3],
        "Tensor.permute": lambda x: x.permute(0, 2, 1)[:, :3],
        "torch.transpose": lambda x: torch.transpose(x, 1, 2)[:, 2:],
        "torch.swapaxes": lambda x: torch.swapaxes(x, 1, 2)[:, 2:],
        "Tensor.swapaxes": lambda x: x.swapaxes(1, 2)[:, 2:],
        "torch.swapdims": lambda x: torch.swapdims(x, -1, 1)[:, 2:],
        "Tensor.swapdims": lambda x: x.swapdims(-1, 1)[:, 2:],
        "swapped in place": lambda x: x.clone().swapaxes_(1, 2).swapdims_(1, 2)[:, 1:],
        "torch.movedim": lambda x: torch.movedim(x, 1, -1)[:, 1],
        "Tensor.movedim": lambda x: x.movedim(-1, 1)[:, 1],
        "torch.moveaxis": lambda x: torch.moveaxis(x, (0, 2), (0, 1))[:, 1],
        "Tensor.moveaxis": lambda x: x.moveaxis(2, 1)[:, 1],
        "mH": lambda x: x.mH[:, 4],
        "torch.adjoint": lambda x: torch.adjoint(x)[:, 4],
        "Tensor.adjoint": lambda x: x.adjoint()[:, 4],
        "torch.chunk": lambda x: torch.chunk(x, 3, 2)[1],
        "Tensor.chunk": lambda x: x.chunk(2, dim=1)[1],
        "torch.unsafe_chunk": lambda x: torch.unsafe_chunk(x, 3, 2)[1],
        "Tensor.unsafe_chunk": lambda x: x.unsafe_chunk(3, 2)[1],
        "torch.split": lambda x: torch.split(x, 4, -1)[1],
        "Tensor.split": lambda x: x.split([1, 3], dim=1)[1],
        "torch.split_with_sizes": lambda x: torch.split_with_sizes(x, [1, 5], 2)[1],
        "Tensor.split_with_sizes": lambda x: x.split_with_sizes([1, 5], 2)[0],
        "torch.unsafe_split": lambda x: torch.unsafe_split(x, 3, 2)[1],
        "Tensor.unsafe_split": lambda x: x.unsafe_split(3, 2)[1],
        "torch.tensor_split": lambda x: torch.tensor_split(x, 4, dim=2)[3],
        "Tensor.tensor_split": lambda x: x.tensor_split((1, 4), dim=2)[1],
        "torch.unbind": lambda x: torch.unbind(x, 1)[2],
        "Tensor.unbind": lambda x: sum(x.unbind(-1)),
        "unpacking": lambda x: torch.stack([token for token in x.transpose(0, 1)][1:], 1),
        "torch.narrow": lambda x: torch.narrow(x, 2, 1, 3),
        "Tensor.narrow": lambda x: x.narrow(1, 1, 3),
        "torch.select": lambda x: torch.select(x, 1, -1),
        "Tensor.select": lambda x: x.select(2, 1),
        "torch.index_select": lambda x: torch.index_select(x, 1, TAKEN),
        "Tensor.index_select": lambda x: x.index_select(2, TAKEN),
        "torch.gather": lambda x: torch.gather(x, 1, TAKEN.view(1, 4, 1).expand(len(x), 4, 6)),
        "Tensor.gather": lambda x: x.gather(2, TAKEN.expand(x.shape[0], 4, 4)),
        "torch.take_along_dim": lambda x: torch.take_along_dim(x, TAKEN.view(1, 4, 1), 1),
        "Tensor.take_along_dim": lambda x: x.take_along_dim(TAKEN.view(1, 1, 4), dim=2),
        "torch.repeat_interleave": lambda x: torch.repeat_interleave(x[:, :, :2], 2, dim=1),
        "Tensor.repeat_interleave": lambda x: x.repeat_interleave(TAKEN.clamp(max=2), 1),
        "Tensor.repeat": lambda x: x[:, :, :2].repeat(1, 2, 3),
        "torch.tile": lambda x: torch.tile(x[:, :, :2], (2, 1)),
        "Tensor.tile": lambda x: x[:, :2, :2].tile((1, 3, 1)),
        "Tensor.expand": lambda x: x[:, :1].expand(-1, 3, 6),
        "torch.broadcast_to": lambda x: torch.broadcast_to(x[:, :, :1], (len(x), 4, 3)),
        "Tensor.broadcast_to": lambda x: x[:, :, 1:2].broadcast_to(len(x), 4, 3),
        "torch.tril": lambda x: torch.tril(x),
        "Tensor.tril": lambda x: x.tril(1),
        "torch.triu": lambda x: torch.triu(x, diagonal=-1),
        "Tensor.triu": lambda x: x.triu(),
        "triangles in place": lambda x: x.clone().triu_(-1).tril_(2),
        "view_copy": lambda x: torch.view_copy(x, (len(x), 24))[:, :5],
        "index tensors": lambda x: x[:, TAKEN, TAKEN],
        "a bool mask": lambda x: x[:, torch.tensor([True, False, True, True])],
        "an ellipsis": lambda x: x[..., ::2, -1],
        "F.pixel_shuffle of tokens": lambda x: F.pixel_shuffle(x.view(-1, 4, 3, 2), 2),
        "assigned": lambda x: assigned(x),
        "assigned to new zeros": lambda x: preallocated(x),
        "torch.cat": lambda x: torch.cat([x[:, 1:], torch.zeros_like(x), x], 1),
        "torch.concat": lambda x: torch.concat((x, x[:, :1]), dim=1),
        "torch.concatenate": lambda x: torch.concatenate((x, x[:, :1]), -2),
        "cat skips empty vectors": lambda x: torch.cat([x[:0, 0, 0], x, torch.empty(0), x], -1),
        "cat grown from nothing": lambda x: grown(x),
        "cat with a plain tensor": lambda x: torch.cat([torch.ones(len(x), 1, 6).to(x), x], 1),
        "torch.stack": lambda x: torch.stack([x[:, 0], x[:, 1]], -1),
        "where, a fixed choice": lambda x: torch.where(torch.arange(6) > 2, x, 2.0),
        "where, fixed, of two": lambda x: torch.where(
            torch.arange(6) > 2, x, x.flip(1).to(torch.float64)
        ),
        "Tensor.where": lambda x: x.where(torch.arange(4)[:, None] > 1, torch.zeros(()).to(x)),
        "torch.masked_fill": lambda x: torch.masked_fill(x, torch.arange(6) > 2, 1.0),
        "Tensor.masked_fill": lambda x: x.masked_fill(torch.arange(4)[:, None] == 1, -5),
        "masked_fill_": lambda x: x.clone().masked_fill_(torch.arange(6) == 1, 0.0),
    },
    IMAGE: {
        "torch.flip": lambda x: torch.flip(x, (2,))[:, 1:],
        "Tensor.flip": lambda x: x.flip(1, 3)[:, 1:],
        "flipud": lambda x: x.transpose(0, 2).flipud().transpose(0, 2)[:, :, 1:],
        "torch.flipud": lambda x: torch.flipud(x.transpose(0, 1)).transpose(0, 1)[:, 1:],
        "vsplit": lambda x: torch.vsplit(x.movedim(2, 0), 2)[1].movedim(0, 2),
        "Tensor.vsplit": lambda x: x.movedim(2, 0).vsplit(3)[1].movedim(0, 2),
        "torch.dsplit": lambda x: torch.dsplit(x, 3)[1],
        "Tensor.dsplit": lambda x: x.dsplit([2])[0],
        "torch.roll": lambda x: torch.roll(x, (1, 2), (2, 3))[:, 1:, 1:],
        "Tensor.roll": lambda x: x.roll(1, 1)[:, :, :3],
        "torch.rot90": lambda x: torch.rot90(x, 1, (2, 3))[:, :, 1:],
        "Tensor.rot90": lambda x: x.rot90(3, [2, 3])[:, :, 1:],
        "F.pixel_shuffle": lambda x: F.pixel_shuffle(x, 2)[..., 1:],
        "torch.pixel_shuffle": lambda x: torch.pixel_shuffle(x, 2)[..., 1:],
        "F.pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2)[:, 3:9],
        "F.channel_shuffle": lambda x: F.channel_shuffle(x, 2)[:, 1:],
        "torch.channel_shuffle": lambda x: torch.channel_shuffle(x, 2)[:, 1:],
        "native_channel_shuffle": lambda x: F.native_channel_shuffle(x, 2)[:, 1:],
        "F.unfold": lambda x: F.unfold(x, 3, dilation=1, padding=1, stride=2),
        "Tensor.unfold": lambda x: x.unfold(2, 3, 2).unfold(3, 2, 1)[..., 1],
        "F.fold": lambda x: F.fold(F.unfold(x, 2), (6, 4), 2),
        "F.pad": lambda x: F.pad(x, (1, 2, 0, -1)),
        "F.pad with a value": lambda x: F.pad(x, (1, 0), value=3.0),
        "F.pad of channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
        "F.pad reflect": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
        "F.pad replicate": lambda x: F.pad(x, (1, 2, 0, 1), "replicate"),
        "F.pad circular": lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"),
        "constant_pad_nd": lambda x: torch.constant_pad_nd(x, (1, 1), 2.0),
        "interpolate nearest": lambda x: F.interpolate(x, scale_factor=2),
        "interpolate nearest-exact": lambda x: F.interpolate(x, (4, 7), mode="nearest-exact"),
        "interpolate down": lambda x: F.interpolate(x, size=(4, 3)),
        "interpolate bilinear": lambda x: F.interpolate(x, scale_factor=(1.5, 2), mode="bilinear"),
        "interpolate bilinear, corners": lambda x: F.interpolate(
            x, (7, 5), None, "bilinear", align_corners=True
        ),
        "interpolate bilinear, antialias": lambda x: F.interpolate(
            x, (3, 3), mode="bilinear", antialias=True
        ),
        "interpolate bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        "interpolate bicubic, corners": lambda x: F.interpolate(
            x, size=(7, 9), mode="bicubic", align_corners=True
        ),
        "interpolate bicubic, one scale": lambda x: F.interpolate(
            x, scale_factor=(2, 1), mode="bicubic", recompute_scale_factor=True
        ),
        "interpolate area": lambda x: F.interpolate(x, (3, 2), mode="area"),
        "F.upsample": lambda x: F.upsample(x, scale_factor=2, mode="nearest"),
    },
    VOLUME: {
        "interpolate trilinear": lambda x: F.interpolate(x, (4, 3, 5), mode="trilinear"),
        "interpolate nearest 3d": lambda x: F.interpolate(x, scale_factor=2),
        "pad 3d": lambda x: F.pad(x, (1, 0, 0, 1, 1, 1)),
        "pad 3d, replicate": lambda x: F.pad(x, (1, 0, 0, 1, 1, 1), mode="replicate"),
    },
    (4, 5): {
        "interpolate linear": lambda x: F.interpolate(x, 8, mode="linear"),
        "interpolate linear, corners": lambda x: F.interpolate(
            x, scale_factor=1.6, mode="linear", align_corners=True
        ),
    },
}
SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "to": lambda x: x.to(torch.float64),
    "to device": lambda x: x.to("cpu"),
    "to other": lambda x: x.to(x),
    "to, copied": lambda x: x.to(device=x.device, dtype=x.dtype, copy=True),
    "double": lambda x: x.double(),
    "float": lambda x: x.float().double(),
    "half": lambda x: x.half().double(),
    "bfloat16": lambda x: x.bfloat16().double(),
    "type": lambda x: x.type(x.dtype),
    "type_as": lambda x: x.type_as(x),
    "cpu": lambda x: x.cpu(),
    "clone": lambda x: x.clone(),
    "torch.clone": lambda x: torch.clone(x, memory_format=torch.contiguous_format),
    "detach": lambda x: x.detach(),
    "torch.detach": lambda x: torch.detach(x),
    "detach_": lambda x: x.detach_(),
    "data": lambda x: x.data,
    "contiguous": lambda x: x.contiguous(),
    "requires_grad_": lambda x: x.requires_grad_(False),
}


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1] = x[:, 2] + x[:, 3]
    y[:, 3, ::2] = 0.0
    y[:, :, 5:] = x[:, :, :1]
    y[..., torch.tensor([1, 3])] = y[..., torch.tensor([2, 2])]
    return y


def grown(x: Tensor) -> Tensor:
    """Rows gathered in a tensor that starts empty."""
    rows = torch.tensor([])
    for row in x.unbind(1):
        rows = torch.cat([rows, row[:, None]], dim=1)
    return rows


def preallocated(x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], 3, 6)
    out[:, 0] = x[:, 2]
    out[:, 2] = x[:, 1] + x[:, 3]
    full = torch.zeros_like(out)
    full[:, 1:] = out[:, 1:]
    full += out
    return full


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * 0.5)


def both_sides(gates: Callable[[Tensor], Tensor], scale: float = 0.5) -> Rule:
    """where(z > 0, z, scale · z): the side that was taken, both sides in g."""
    return Rule(
        lambda path, z: path,
        lambda path: path * (1 + scale**2),
        lambda path, z: path * torch.where(gates(z) > 0, 1.0, scale**2),
    )


CASES = {
    **{
        f"{name}, {shape}": linear(function, shape)
        for shape, functions in MOVES.items()
        for name, function in functions.items()
    },
    **{f"{name}": of(function, VECTOR, gate(torch.ones_like)) for name, function in SAME.items()},
    "Flatten": Case(lambda: nn.Flatten(2), IMAGE),
    "Unflatten": Case(lambda: nn.Unflatten(1, (2, 2)), VECTOR),
    "PixelShuffle": Case(lambda: nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": linear(nn.PixelUnshuffle(2), IMAGE),
    "ChannelShuffle": Case(lambda: nn.ChannelShuffle(2), IMAGE),
    "Upsample bicubic": Case(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE),
    "Upsample bilinear": Case(lambda: nn.Upsample(size=(5, 9), mode="bilinear"), IMAGE),
    "UpsamplingNearest2d": Case(lambda: nn.UpsamplingNearest2d(scale_factor=2), IMAGE),
    "UpsamplingBilinear2d": Case(lambda: nn.UpsamplingBilinear2d(size=(8, 8)), IMAGE),
    "Fold and Unfold": linear(nn.Sequential(nn.Unfold(2), nn.Fold((6, 4), 2)), IMAGE),
    "ZeroPad2d": Case(lambda: nn.ZeroPad2d((1, 0, 2, 0)), IMAGE),
    "ConstantPad1d": Case(lambda: nn.ConstantPad1d(2, 1.5), (4, 5)),
    "ReflectionPad2d": Case(lambda: nn.ReflectionPad2d((1, 2, 0, 1)), IMAGE),
    "ReflectionPad1d": Case(lambda: nn.ReflectionPad1d(2), (4, 5)),
    "ReplicationPad2d": Case(lambda: nn.ReplicationPad2d(1), IMAGE),
    "CircularPad2d": Case(lambda: nn.CircularPad2d((2, 1, 0, 1)), IMAGE),
    "a choice by the data": of(leaky, VECTOR, both_sides(lambda z: z)),
    "Tensor.where by the data": of(
        lambda x: x.where(x.gt(0) & ~(x <= 0), x / 2), VECTOR, both_sides(lambda z: z)
    ),
    "masked_fill by the data": of(
        lambda x: x.masked_fill(x <= 0, 0.0), VECTOR, gate(lambda z: (z > 0).double())
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:`nn.functional.upsample` is deprecated")
@pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Tensor.T is deprecated")
def test_scores(name):
    check(CASES[name])


def test_bicubic_coefficients_count_by_size():
    """They are negative beside an edge: as they are, path sums would cancel."""
    rule = as_it_is(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), (1, 4, 4))
    assert float(rule.g(torch.ones(1, 1, 4, 4).double()).amax()) > 1.2


def test_reinterpreted_bits_have_no_path():
    with pytest.raises(NoRuleError, match=r"view\(dtype\) reinterprets bits"):
        model = nn.Sequential(nn.Linear(4, 4), Bits(), nn.Linear(4, 2))
        pxfast.score(model, torch.randn(2, 4))


class Bits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(torch.int32).view(torch.float32)
