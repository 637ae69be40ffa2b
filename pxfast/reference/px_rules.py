"""The rules of the auxiliary networks, one small function for each kind of operation.

A rule receives the auxiliary network and the call, and returns the path sum behind the operation.
There are two switches, so one function states all three columns of a rule:

    network         gated   weighted
    h (activation)  yes     no        the data's factors: squared gates of the real network
    g (kernel)      no      yes       the weights' factors: θ²·M, squared scales
    joint           yes     yes       both; what is applied as it is, is applied once

`RULES` maps module types, functions and method names to rules; more can be added to it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATH, GATE, PLAIN = "path", "gate", "plain"  # what a node carries: see `kind_of`


@dataclass
class Call:
    """An operation of the traced network, as an auxiliary network meets it."""

    node: Any  # the fx.Node
    function: Any  # the operation itself: a module, a function, a method
    module: Any  # the same if it is a module, else None
    args: tuple[Any, ...]  # path sums where the real network has activations
    kwargs: dict[str, Any]
    real: tuple[Any, ...]  # the real network's positional arguments (gated networks only)
    kinds: tuple[Any, ...]  # PATH, GATE or PLAIN for each positional argument


class Network(Protocol):
    """What a rule may ask of the network it works in."""

    gated: bool
    weighted: bool

    def weight(self, call: Call) -> Tensor:
        """Return θ²·M or the mask M of the weight that this call applies."""
        ...

    def gate_of(self, call: Call) -> int:
        """Return which of two path factors is the gate, 0 or 1."""
        ...


Rule = Callable[[Network, Call], Any]


def linear(net: Network, call: Call) -> Tensor:
    """Weight → θ²·M or M, bias dropped; everything else of the layer as it is."""
    if (module := call.module) is not None:
        changed = {"weight": net.weight(call)}
        if module.bias is not None:
            changed["bias"] = torch.zeros_like(module.bias)
        return torch.func.functional_call(module, changed, call.args, call.kwargs)
    path, rest = call.args[0], call.args[3:]
    named = {key: value for key, value in call.kwargs.items() if key not in ("weight", "bias")}
    return call.function(path, net.weight(call), None, *rest, **named)


def gate(phi: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return φ(z)/z, at z = 0 its limit φ'(0); or φ'(z) for a φ with φ(0) ≠ 0."""
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        value = phi(z.clone())
        (slope,) = torch.autograd.grad(value.sum(), z)
    z, value = z.detach(), value.detach()
    if phi(torch.zeros_like(z)).any():
        return slope
    return torch.where(z == 0, slope, value / z)


def activation(net: Network, call: Call) -> Tensor:
    """× the squared gate of the real network; open in g."""
    path, *rest = call.args
    if not net.gated:
        return path
    phi = gate(lambda z: call.function(z, *rest, **call.kwargs), call.real[0])
    return path * phi**2


def normalised(
    net: Network, path: Tensor, variance: Tensor | None, gamma: Tensor | None, eps: float
) -> Tensor:
    """× 1/(σ²+ε) where σ² comes from the data, × γ² where the weights count."""
    if net.gated and variance is not None:
        path = path / (variance + eps)
    return path * gamma**2 if net.weighted and gamma is not None else path


def per_channel(vector: Tensor | None, like: Tensor) -> Tensor | None:
    """Return `vector` as [1, C, 1, ...], to be multiplied with `like` [N, C, ...]."""
    return None if vector is None else vector.view(1, -1, *[1] * (like.dim() - 2))


def batch_norm(net: Network, call: Call) -> Tensor:
    """Running statistics: × γ²/(σ²+ε) in g. Without: × 1/(σ²_batch+ε) in h, × γ² in g."""
    if (module := call.module) is not None:
        path, running, gamma, eps = call.args[0], module.running_var, module.weight, module.eps
        from_data = running is None
    else:
        given = dict(zip(_BATCH_NORM, call.args, strict=False)) | call.kwargs
        path, running, gamma = given["input"], given["running_var"], given.get("weight")
        eps, from_data = given.get("eps", 1e-5), given.get("training", False)
    gamma = per_channel(gamma, path)
    if from_data:
        dims = [0, *range(2, path.dim())]
        variance = call.real[0].var(dims, correction=0, keepdim=True) if net.gated else None
        return normalised(net, path, variance, gamma, eps)
    if not net.weighted:
        return path
    scale = 1 if gamma is None else gamma**2
    return path * scale / (per_channel(running, path) + eps)


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "", "eps")


def layer_norm(net: Network, call: Call) -> Tensor:
    """× 1/(σ²+ε) of the sample's last dimensions in h, × γ² in g; centring dropped."""
    if (module := call.module) is not None:
        path, shape, gamma, eps = call.args[0], module.normalized_shape, module.weight, module.eps
    else:
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        given = dict(zip(names, call.args, strict=False)) | call.kwargs
        path, shape, gamma = given["input"], given["normalized_shape"], given.get("weight")
        eps = given.get("eps", 1e-5)
    dims = list(range(-len(shape), 0))
    variance = call.real[0].var(dims, correction=0, keepdim=True) if net.gated else None
    return normalised(net, path, variance, gamma, eps)


def group_norm(net: Network, call: Call) -> Tensor:
    """× 1/(σ²+ε) of the sample's group in h, × γ² in g. InstanceNorm: a group is a channel."""
    module, path = call.module, call.args[0]
    if getattr(module, "running_var", None) is not None:
        return batch_norm(net, call)
    if module is None:
        names = ("input", "num_groups", "weight", "bias", "eps")
        given = dict(zip(names, call.args, strict=False)) | call.kwargs
        groups, gamma, eps = given["num_groups"], given.get("weight"), given.get("eps", 1e-5)
    else:
        groups = getattr(module, "num_groups", path.shape[1])
        gamma, eps = module.weight, module.eps
    variance = None
    if net.gated:
        grouped = call.real[0].unflatten(1, (groups, -1)).flatten(2)  # [N, G, C/G · places]
        variance = grouped.var(2, correction=0).repeat_interleave(path.shape[1] // groups, 1)
        variance = variance.view(*variance.shape, *[1] * (path.dim() - 2))
    return normalised(net, path, variance, per_channel(gamma, path), eps)


def separable(operation: Callable[[Tensor], Tensor], path: Tensor) -> Tensor:
    """Apply |A_d| along every spatial dimension d, where A_d is what `operation` does along d.

    A_d is read off the operation itself: its response to every unit vector along d (constant along
    the others). For a max-pooling that is 1 inside a window and 0 outside.
    """
    spatial = path.shape[2:]
    for d, size in enumerate(spatial, start=2):
        shape = [size if e == d else 1 for e in range(2, path.dim())]
        basis = torch.eye(size, dtype=path.dtype).view(size, 1, *shape)
        response = operation(basis.expand(size, 1, *spatial).contiguous())
        for e in range(path.dim() - 1, 0, -1):
            response = response if e == d else response.select(e, 0)
        path = (path.movedim(d, -1) @ response.abs()).movedim(-1, d)
    return path


def max_pool(net: Network, call: Call) -> Tensor:
    """The entry that the real network picked; in g the sum over the window."""
    path, *rest = call.args
    if not net.gated:
        return separable(lambda x: call.function(x, *rest, **call.kwargs), path)
    if (module := call.module) is not None:
        module.return_indices = True
        _, picked = module(call.real[0])
        module.return_indices = False
    else:
        _, picked = call.function(call.real[0], *rest, **call.kwargs | {"return_indices": True})
    return path.flatten(2).gather(2, picked.flatten(2)).view_as(picked)


def largest(net: Network, call: Call) -> Tensor:
    """Over dimensions: the entry that is largest in the real network; in g the sum."""
    path, dims = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs["dim"]
    dims = sorted(d % path.dim() for d in ([dims] if isinstance(dims, int) else dims))
    keepdim = call.args[2] if len(call.args) > 2 else call.kwargs.get("keepdim", False)
    if not net.gated:
        return path.sum(dims, keepdim=keepdim)
    last = list(range(-len(dims), 0))
    flat, real = (t.movedim(dims, last).flatten(-len(dims)) for t in (path, call.real[0]))
    picked = flat.gather(-1, real.argmax(-1, keepdim=True))
    if not keepdim:
        return picked.squeeze(-1)
    return picked.reshape([1 if d in dims else size for d, size in enumerate(path.shape)])


def interpolate(net: Network, call: Call) -> Tensor:
    """As it is, with absolute coefficients (only the bicubic ones can be negative)."""
    mode = call.kwargs.get("mode", getattr(call.module, "mode", "nearest"))
    path, *rest = call.args
    if mode == "bicubic":
        return separable(lambda x: call.function(x, *rest, **call.kwargs), path)
    return call.function(path, *rest, **call.kwargs)


def pad(net: Network, call: Call) -> Tensor:
    """As it is; a constant that is padded starts no path."""
    if call.module is not None:
        return F.pad(call.args[0], call.module.padding)
    path, sizes, *rest = call.args
    mode = call.kwargs.get("mode", rest[0] if rest else "constant")
    return call.function(path, sizes, mode)


def as_it_is(net: Network, call: Call) -> Any:
    """The operation itself, applied to the path sums."""
    return call.function(*call.args, **call.kwargs)


def identity(net: Network, call: Call) -> Tensor:
    """Nothing."""
    return call.args[0]


def spread(path: Tensor, other: Any) -> Tensor:
    """Return `path`, expanded to what adding or multiplying `other` would make of its shape."""
    return path + torch.zeros_like(other) if isinstance(other, Tensor) else path


def add(net: Network, call: Call) -> Tensor:
    """Path sums add up, subtracted ones too; a term without a path adds 0."""
    first, second = call.args
    if call.kinds == (PATH, PATH):
        if _is_own_mean(call):
            return first
        alpha = call.kwargs.get("alpha", 1)
        return first + second * (alpha**2 if net.weighted else 1)
    return spread(first, second) if call.kinds[0] == PATH else spread(second, first)


def _is_own_mean(call: Call) -> bool:
    """Whether the call is x - mean(x): centring, which is dropped."""
    first, second = call.node.args
    return (
        call.node.target in (operator.sub, torch.sub, "sub")
        and second.target in (torch.mean, "mean")
        and second.args[0] is first
    )


def multiply(net: Network, call: Call) -> Tensor:
    """× c² in g for a constant or a learned scale, in h for a tensor of the sample; products."""
    if call.kinds == (PATH, PATH):
        return product(net, call)
    which = call.kinds.index(PATH)
    path, factor, kind = call.args[which], call.args[1 - which], call.kinds[1 - which]
    if kind == GATE:
        return path * call.real[1 - which] ** 2 if net.gated else path
    return path * factor**2 if net.weighted else spread(path, factor)


def add_product(net: Network, call: Call) -> Tensor:
    """x + value · y · z, where one of y and z may carry a path."""
    which = [i for i in (1, 2) if call.kinds[i] == PATH]
    assert len(which) == 1, "addcmul: expected a path in one factor"
    (path,), factor = (call.args[i] for i in which), call.args[3 - which[0]]
    value = call.kwargs.get("value", 1)
    product = path * (factor * value) ** 2 if net.weighted else spread(path, factor)
    return product + call.args[0] if call.kinds[0] == PATH else spread(product, call.args[0])


def divide(net: Network, call: Call) -> Tensor:
    """As multiplying by the reciprocal."""
    path, divisor = call.args
    if call.kinds[1] == GATE:
        return path / call.real[1] ** 2 if net.gated else path
    return path / divisor**2 if net.weighted else spread(path, divisor)


def product(net: Network, call: Call) -> Tensor:
    """× the squared value of the gate factor in h; the value's path in g."""
    gate = net.gate_of(call)
    path = call.args[1 - gate]
    return path * call.real[gate] ** 2 if net.gated else spread(path, call.args[gate])


def concatenate(net: Network, call: Call) -> Tensor:
    """Side by side; members without a path are zeros."""
    members, *rest = call.args
    kinds = call.kinds[0]
    zeroed = [m if kind == PATH else torch.zeros_like(m)
              for m, kind in zip(members, kinds, strict=True)]  # fmt: skip
    return call.function(zeroed, *rest, **call.kwargs)


def negate(net: Network, call: Call) -> Tensor:
    """The coefficient is -1, its square 1."""
    return call.args[0]


RULES: dict[Any, Rule] = {}


def _register(rule: Rule, *keys: Any) -> None:
    RULES.update(dict.fromkeys(keys, rule))


BOUNDED = [  # the gate of a product, by precedence
    {nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"},
    {nn.Hardsigmoid, F.hardsigmoid},
    {nn.Tanh, F.tanh, torch.tanh, "tanh"},
]
_register(linear, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d)
_register(linear, nn.ConvTranspose2d, nn.ConvTranspose3d, F.linear, F.conv1d, F.conv2d, F.conv3d)
_register(linear, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_register(linear, torch.conv1d, torch.conv2d, torch.conv3d)
_register(activation, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU)
_register(activation, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanhshrink)
_register(activation, nn.Softsign, nn.Softplus, nn.Threshold, nn.Hardshrink, nn.Softshrink)
_register(activation, nn.LogSigmoid, F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.prelu, F.elu)
_register(activation, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.softplus, F.softsign)
_register(activation, torch.relu, torch.relu_, "relu", "relu_", F.relu_, F.leaky_relu_)
_register(activation, *(key for keys in BOUNDED for key in keys))
_register(batch_norm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, F.batch_norm)
_register(layer_norm, nn.LayerNorm, F.layer_norm)
_register(
    group_norm, F.group_norm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
)
_register(max_pool, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d)
_register(max_pool, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_register(max_pool, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d)
_register(largest, torch.amax, "amax")
_register(interpolate, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate)
_register(pad, F.pad, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
_register(pad, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
_register(identity, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_register(identity, nn.AlphaDropout, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
_register(identity, "float", "double", "to", "type", "type_as")
_register(as_it_is, torch.clone, "clone", "contiguous")
_register(as_it_is, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d)
_register(as_it_is, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
_register(as_it_is, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_register(as_it_is, nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle)
_register(as_it_is, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d)
_register(as_it_is, nn.ReplicationPad2d, nn.CircularPad1d, nn.CircularPad2d, F.pixel_shuffle)
_register(as_it_is, torch.flatten, "flatten", "unflatten", torch.reshape, "reshape", "view")
_register(as_it_is, torch.permute, "permute", torch.transpose, "transpose", "expand", "expand_as")
_register(as_it_is, torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze", operator.getitem)
_register(as_it_is, torch.chunk, "chunk", torch.split, "split", "unbind", torch.unbind)
_register(as_it_is, torch.mean, "mean", torch.sum, "sum", torch.roll, "roll", "narrow", "select")
_register(as_it_is, torch.movedim, "movedim", torch.flip, "flip", "repeat")
_register(as_it_is, "reshape_as", "view_as")
_register(add, operator.add, operator.iadd, torch.add, "add", "add_")
_register(add, operator.sub, operator.isub, torch.sub, "sub", "sub_")
_register(multiply, operator.mul, operator.imul, torch.mul, "mul", "mul_")
_register(add_product, torch.addcmul, "addcmul")
_register(divide, operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_")


_register(concatenate, torch.cat, torch.concat, torch.stack)
_register(negate, operator.neg, torch.neg, "neg")

SIZES = {"size", "dim", "numel", "ndimension", "new_zeros", "new_ones", getattr, torch.numel}
SIZES |= {operator.eq, operator.mod, operator.floordiv, torch._assert}
GATES = {torch.pow, "pow", operator.pow, torch.square, "square", torch.sqrt, "sqrt", torch.rsqrt}
GATES |= {"rsqrt", torch.norm, "norm", torch.var, "var", torch.std, "std", torch.exp, "exp"}
GATES |= {torch.reciprocal, "reciprocal"}
SOFTMAX = {F.softmax, torch.softmax, "softmax"}  # a gate, too, which something opens
GATES |= SOFTMAX
LEAVES: set[Callable[..., Any]] = set()  # functions that are traced as one operation, if in RULES
