"""A tiny network unrolled into scalar units and the edges between them.

Networks are written with `torch.nn.Sequential`, `Sum`, `Concat` and the layers at the end of this
file. Every unit knows what it is worth at each sample, biases included, so that gates and picked
entries are those of the real, masked network; an edge knows what a path over it is multiplied by.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Index = tuple[int, ...]
Layer: TypeAlias = Any  # nn.Module, whose attributes are declared as Tensor | Module
Weight = tuple[str, Index]  # the name of a parameter and the place in it


class Sum(nn.ModuleList):
    """Branches that read the same input and are added: a residual block."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches' outputs."""
        outputs = [branch(x) for branch in self]
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total


class Concat(nn.ModuleList):
    """Branches that read the same input and are concatenated along dimension 1."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' outputs side by side."""
        return torch.cat([branch(x) for branch in self], dim=1)


@dataclass
class Unit:
    """One scalar of the network: what it is worth at each sample, and the edges that feed it."""

    value: Tensor  # [N], the real network's, biases included
    edges: list[Edge] = field(default_factory=list)
    start: Index | None = None  # its place in the input, where it is an input element


@dataclass
class Edge:
    """A step of a path, into the unit that holds the edge."""

    source: Unit
    weight: Weight | None = None
    value: float = 1.0  # factor of v_p: the weight, or the scale of a normalisation
    gate: Tensor | float = 1.0  # [N], factor of a_p(x_n)
    coefficient: float = 1.0  # factor of c_p


Units = dict[Index, Unit]  # the units of one layer by their place in one sample's tensor


def unroll(
    model: nn.Module, x: Tensor, masks: Mapping[str, Tensor] | None, batchnorm: str
) -> Units:
    """Return the output units of a copy of `model`; everything before hangs on their edges."""
    x = x.cpu().double()
    inputs = {i: Unit(x[(slice(None), *i)], start=i) for i in _places(x.shape[1:])}
    reader = _Reader(len(x), masks or {}, batchnorm)
    return reader.read(copy.deepcopy(model).cpu().double().requires_grad_(False), "", inputs)


@dataclass
class _Reader:
    """What a layer has to know besides its module: N, the masks and whose statistics count."""

    samples: int
    masks: Mapping[str, Tensor]
    batchnorm: str

    def read(self, module: Layer, name: str, units: Units) -> Units:
        """Append the units of `module`, called `name`, to the network that ends in `units`."""
        for kind, layer in _LAYERS.items():
            if isinstance(module, kind):
                return layer(self, module, name, units)
        raise TypeError(f"paths: no rule for module {name!r} of type {type(module).__name__}")

    def kept(self, weight: Weight) -> bool:
        """Whether the mask keeps `weight`."""
        name, index = weight
        return name not in self.masks or bool(self.masks[name][index])


def _places(shape: tuple[int, ...]) -> Iterator[Index]:
    """Yield every index of a tensor of this shape, in memory order."""
    return itertools.product(*(range(size) for size in shape))


def _shape(units: Units) -> Index:
    """Return the shape of the tensor whose elements `units` are."""
    return tuple(max(index[d] for index in units) + 1 for d in range(len(next(iter(units)))))


def _child(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _sequential(reader: _Reader, module: nn.Sequential, name: str, units: Units) -> Units:
    for key, layer in module.named_children():
        units = reader.read(layer, _child(name, key), units)
    return units


def _sum(reader: _Reader, module: Sum, name: str, units: Units) -> Units:
    branches = [reader.read(b, _child(name, key), units) for key, b in module.named_children()]
    result = {}
    for index in branches[0]:
        terms = [branch[index] for branch in branches]
        value = torch.stack([term.value for term in terms]).sum(0)
        result[index] = Unit(value, [Edge(term) for term in terms])
    return result


def _concat(reader: _Reader, module: Concat, name: str, units: Units) -> Units:
    result: Units = {}
    for key, child in module.named_children():
        branch = reader.read(child, _child(name, key), units)
        offset = _shape(result)[0] if result else 0
        result |= {(channel + offset, *rest): unit for (channel, *rest), unit in branch.items()}
    return result


def _flatten(reader: _Reader, module: nn.Flatten, name: str, units: Units) -> Units:
    return {(place,): units[index] for place, index in enumerate(_places(_shape(units)))}


def _identity(reader: _Reader, module: Layer, name: str, units: Units) -> Units:
    return units


def _weighted_sum(
    reader: _Reader, module: Layer, name: str, output: int, terms: list[tuple[Unit, Index]]
) -> Unit:
    """Return the unit Σ θ·source + bias over `terms` (source, place of θ in the weight)."""
    bias = 0.0 if module.bias is None else float(module.bias[output])
    unit = Unit(torch.full((reader.samples,), bias, dtype=torch.float64))
    for source, index in terms:
        weight = (_child(name, "weight"), index)
        if reader.kept(weight):
            theta = float(module.weight[index])
            unit.value = unit.value + theta * source.value
            unit.edges.append(Edge(source, weight, value=theta))
    return unit


def _linear(reader: _Reader, module: nn.Linear, name: str, units: Units) -> Units:
    return {
        (o,): _weighted_sum(reader, module, name, o, [(unit, (o, *i)) for i, unit in units.items()])
        for o in range(module.out_features)
    }


def _conv(
    reader: _Reader, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, name: str, units: Units
) -> Units:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise TypeError(f"paths: module {name!r} must pad with zeros by numbers")
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(_shape(units)[1:], module.padding, module.dilation,
                                    module.kernel_size, module.stride, strict=True)
    ]  # fmt: skip
    inputs = module.in_channels // module.groups
    outputs = module.out_channels // module.groups
    result = {}
    for o, *place in _places((module.out_channels, *sizes)):
        terms = []
        for i, *tap in _places((inputs, *module.kernel_size)):
            source = (o // outputs * inputs + i,
                      *(q * s - p + t * d for q, s, p, t, d in zip(
                          place, module.stride, module.padding, tap, module.dilation,
                          strict=True)))  # fmt: skip
            if source in units:  # outside is padding: a zero that carries no path
                terms.append((units[source], (o, i, *tap)))
        result[(o, *place)] = _weighted_sum(reader, module, name, o, terms)
    return result


def _activation(reader: _Reader, module: Layer, name: str, units: Units) -> Units:
    """Negative inputs are scaled by the slope (0 for ReLU), positive ones pass."""
    result = {}
    for index, unit in units.items():
        if isinstance(module, nn.PReLU):
            slope = float(module.weight[index[0] if module.num_parameters > 1 else 0])
        else:
            slope = getattr(module, "negative_slope", 0.0)
        gate = torch.where(unit.value > 0, torch.ones_like(unit.value), slope)
        result[index] = Unit(unit.value * gate, [Edge(unit, gate=gate)])
    return result


def _batch_norm(reader: _Reader, module: Layer, name: str, units: Units) -> Units:
    result = {}
    for index, unit in units.items():
        channel = index[0]
        gamma, beta = float(module.weight[channel]), float(module.bias[channel])
        if module.running_var is None or reader.batchnorm == "data":
            peers = torch.stack([u.value for i, u in units.items() if i[0] == channel])
            scale = float((peers.var(correction=0) + module.eps).rsqrt())
            value = (unit.value - peers.mean()) * scale * gamma + beta
            edge = Edge(unit, value=gamma, gate=scale)
        else:
            scale = gamma / math.sqrt(float(module.running_var[channel]) + module.eps)
            value = (unit.value - module.running_mean[channel]) * scale + beta
            edge = Edge(unit, value=scale)
        result[index] = Unit(value, [edge])
    return result


def _windows(units: Units, ranges: list[list[range]]) -> dict[Index, list[Unit]]:
    """Return the units under each window; `ranges[d][o]` are the places window o has along d."""
    result = {}
    for channel, *place in _places((_shape(units)[0], *(len(r) for r in ranges))):
        window = itertools.product(*(ranges[d][o] for d, o in enumerate(place)))
        result[(channel, *place)] = [units[(channel, *i)] for i in window if (channel, *i) in units]
    return result


def _pool_ranges(module: Layer, sizes: Index) -> list[list[range]]:
    """Return the places of every window along every dimension, those in the padding included."""

    def each(argument: Any) -> Index:
        return (argument,) * len(sizes) if isinstance(argument, int) else tuple(argument)

    if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        return [
            [range(o * size // out, -(-(o + 1) * size // out)) for o in range(out)]
            for size, out in zip(sizes, each(module.output_size), strict=True)
        ]
    if module.ceil_mode or getattr(module, "dilation", 1) != 1:
        raise TypeError("paths: pooling with ceil_mode or dilation is not unrolled")
    return [
        [range(o * s - p, o * s - p + k) for o in range((size + 2 * p - k) // s + 1)]
        for size, k, s, p in zip(sizes, each(module.kernel_size), each(module.stride),
                                 each(module.padding), strict=True)
    ]  # fmt: skip


def _max_pool(reader: _Reader, module: Layer, name: str, units: Units) -> Units:
    result = {}
    for index, window in _windows(units, _pool_ranges(module, _shape(units)[1:])).items():
        values = torch.stack([unit.value for unit in window])  # [window, N]
        picked = values.argmax(0)
        edges = [Edge(unit, gate=(picked == i).double()) for i, unit in enumerate(window)]
        result[index] = Unit(values.amax(0), edges)
    return result


def _average_pool(reader: _Reader, module: Layer, name: str, units: Units) -> Units:
    ranges = _pool_ranges(module, _shape(units)[1:])
    result = {}
    for index, window in _windows(units, ranges).items():
        covered = math.prod(len(ranges[d][o]) for d, o in enumerate(index[1:]))
        edges = [Edge(unit, coefficient=1 / covered) for unit in window]
        result[index] = Unit(torch.stack([u.value for u in window]).sum(0) / covered, edges)
    return result


_LAYERS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Callable[..., Units]] = {
    nn.Sequential: _sequential,
    Sum: _sum,
    Concat: _concat,
    nn.Flatten: _flatten,
    (nn.Identity, nn.Dropout): _identity,
    nn.Linear: _linear,
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _conv,
    (nn.ReLU, nn.LeakyReLU, nn.PReLU): _activation,
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d): _batch_norm,
    (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d): _max_pool,
    (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d): _average_pool,
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d): _average_pool,
}
