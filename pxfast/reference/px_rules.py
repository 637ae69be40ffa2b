"""The rules of the auxiliary networks, one small function for each kind of operation.

A rule receives the auxiliary network and the call, and returns the path sum behind the operation.
There are two switches, so one function states all three columns of a rule:

    network         gated   weighted
    h (activation)  yes     no        the data's factors: squared gates of the real network
    g (kernel)      no      yes       the weights' factors: θ²·M, squared scales
    joint           yes     yes       both; what is applied as it is, is applied once

`RULES` maps the names of aten operations to rules; more can be added to it. Attention has its own
file, `px_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

aten = torch.ops.aten

# What a node of the graph carries:
PLAIN = "plain"  # a constant or a parameter, or computed from such alone
PATH = "path"  # values that paths go through
LOGITS = "logits"  # a product of queries and keys, on its way to a softmax
ATTENTION = "attention"  # a softmax of logits or paths
GATE = "gate"  # any other value without a path that depends on the sample


@dataclass
class Call:
    """An operation of the graph, as an auxiliary network meets it. Arguments go by their names."""

    node: Any  # the fx.Node
    operation: str
    function: Callable[..., Any]
    args: dict[str, Any]  # path sums where the real network has values with a path
    real: dict[str, Any]  # the real network's
    kinds: dict[str, Any]  # what they carry; a list for a list

    def __call__(self, /, **changed: Any) -> Any:
        """Return what the operation makes of the path sums, some arguments changed."""
        return self.function(**self.args | changed)

    @property
    def path(self) -> Any:
        """The first argument."""
        return next(iter(self.args.values()))

    @property
    def z(self) -> Any:
        """The first argument of the real network."""
        return next(iter(self.real.values()))

    def replacing(self, value: Tensor) -> Any:
        """Return what the operation makes of another first argument."""
        return self(**{next(iter(self.args)): value})


class Network(Protocol):
    """What a rule may ask of the network it works in."""

    gated: bool
    weighted: bool

    def weight(self, call: Call) -> Tensor:
        """Return θ²·M or the mask M of the weight that this call applies."""
        ...

    def gate_of(self, call: Call, factors: tuple[str, str] = ("self", "other")) -> str:
        """Return which of two path factors is the gate: the name of an argument."""
        ...


Rule = Callable[[Any, Call], Any]


def linear(net: Network, call: Call) -> Tensor:
    """Weight → θ²·M or M, bias dropped; everything else of the layer as it is."""
    return call(weight=net.weight(call), bias=None)


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
    return call.path * gate(call.replacing, call.z) ** 2 if net.gated else call.path


def normalised(
    net: Network, path: Tensor, variance: Tensor, gamma: Tensor | None, eps: float
) -> Tensor:
    """× 1/(σ²+ε) where σ² comes from the data, × γ² where the weights count."""
    if net.gated:
        path = path / (variance + eps)
    return path * gamma**2 if net.weighted and gamma is not None else path


def per_channel(vector: Tensor | None, like: Tensor) -> Tensor | None:
    """Return `vector` as [1, C, 1, ...], to be multiplied with `like` [N, C, ...]."""
    return None if vector is None else vector.view(1, -1, *[1] * (like.dim() - 2))


def batch_norm(net: Network, call: Call) -> Tensor:
    """Running statistics: × γ²/(σ²+ε) in g. Without: × 1/(σ²_batch+ε) in h, × γ² in g."""
    path, gamma, eps = call.path, per_channel(call.args["weight"], call.z), call.args["eps"]
    if call.args.get("training", call.args.get("use_input_stats")):
        dims = [0, *range(2, path.dim())]
        return normalised(net, path, call.z.var(dims, correction=0, keepdim=True), gamma, eps)
    if not net.weighted:
        return path
    scale = 1 if gamma is None else gamma**2
    return path * scale / (per_channel(call.args["running_var"], path) + eps)


def layer_norm(net: Network, call: Call) -> Tensor:
    """× 1/(σ²+ε) of the sample's last dimensions in h, × γ² in g; centring dropped."""
    dims = list(range(-len(call.args["normalized_shape"]), 0))
    variance = call.z.var(dims, correction=0, keepdim=True)
    return normalised(net, call.path, variance, call.args["weight"], call.args["eps"])


def rms_norm(net: Network, call: Call) -> Tensor:
    """As LayerNorm, with σ² = mean(x²)."""
    dims, eps = list(range(-len(call.args["normalized_shape"]), 0)), call.args["eps"]
    eps = torch.finfo(call.z.dtype).eps if eps is None else eps
    variance = call.z.square().mean(dims, keepdim=True)
    return normalised(net, call.path, variance, call.args["weight"], eps)


def group_norm(net: Network, call: Call) -> Tensor:
    """× 1/(σ²+ε) of the sample's group in h, × γ² in g. InstanceNorm: a group is a channel."""
    if call.args.get("use_input_stats") is False:
        return batch_norm(net, call)
    z, groups = call.z, call.args.get("num_groups", call.z.shape[1])
    grouped = z.unflatten(1, (groups, -1)).flatten(2)  # [N, G, C/G · places]
    variance = grouped.var(2, correction=0).repeat_interleave(z.shape[1] // groups, 1)
    variance = variance.view(*variance.shape, *[1] * (z.dim() - 2))
    return normalised(net, call.path, variance, per_channel(call.args["weight"], z),
                      call.args["eps"])  # fmt: skip


def separable(call: Call) -> Tensor:
    """Apply |A_d| along every spatial dimension d, where A_d is what the operation does along d.

    A_d is read off the operation itself: its response to every unit vector along d (constant along
    the others). For a max-pooling that is 1 inside a window and 0 outside.
    """
    path = call.path
    spatial = path.shape[2:]
    for d, size in enumerate(spatial, start=2):
        shape = [size if e == d else 1 for e in range(2, path.dim())]
        basis = torch.eye(size, dtype=path.dtype).view(size, 1, *shape)
        response = call.replacing(basis.expand(size, 1, *spatial).contiguous())
        response = response[0] if isinstance(response, tuple) else response
        for e in range(path.dim() - 1, 0, -1):
            response = response if e == d else response.select(e, 0)
        path = (path.movedim(d, -1) @ response.abs()).movedim(-1, d)
    return path


def max_pool(net: Network, call: Call) -> Any:
    """The entry that the real network picked; in g the sum over the window."""
    name = call.operation
    returns_indices = name.startswith("adaptive") or name.endswith("_indices")
    if not net.gated:
        pooled = separable(call)
        return (pooled, None) if returns_indices else pooled
    pool = call.function if returns_indices else getattr(aten, f"{name}_with_indices")
    _, picked = pool(**call.real)
    path = call.path.flatten(2).gather(2, picked.flatten(2)).view_as(picked)
    return (path, picked) if returns_indices else path


def largest(net: Network, call: Call) -> Any:
    """Over dimensions: the entry that is largest in the real network; in g the sum."""
    path, dims, keepdim = call.path, call.args["dim"], call.args["keepdim"]
    dims = sorted(d % path.dim() for d in ([dims] if isinstance(dims, int) else dims))
    if net.gated:
        last = list(range(-len(dims), 0))
        flat, real = (t.movedim(dims, last).flatten(-len(dims)) for t in (path, call.z))
        picked = flat.gather(-1, real.argmax(-1, keepdim=True)).squeeze(-1)
    else:
        picked = path.sum(dims)
    if keepdim:
        picked = picked.reshape([1 if d in dims else n for d, n in enumerate(path.shape)])
    return (picked, None) if call.operation == "max" else picked


def pad(net: Network, call: Call) -> Tensor:
    """As it is; a constant that is padded starts no path."""
    return call(value=0)


def as_it_is(net: Network, call: Call) -> Any:
    """The operation itself, applied to the path sums."""
    return call()


def absolute(net: Network, call: Call) -> Tensor:
    """As it is, with absolute coefficients (those of a bicubic interpolation can be negative)."""
    return separable(call)


def identity(net: Network, call: Call) -> Tensor:
    """Nothing."""
    return call.path


def spread(path: Tensor, other: Any) -> Tensor:
    """Return `path`, expanded to what adding or multiplying `other` would make of its shape."""
    return path + torch.zeros_like(other) if isinstance(other, Tensor) else path


def add(net: Network, call: Call) -> Tensor:
    """Path sums add up, subtracted ones too; a term without a path adds 0."""
    first, second = call.args["self"], call.args["other"]
    if PATH not in (call.kinds["self"], call.kinds["other"]):
        return first
    if call.kinds["other"] != PATH:
        return spread(first, call.real["other"])
    alpha = call.args.get("alpha", 1) ** 2 if net.weighted else 1
    if call.kinds["self"] != PATH:
        return spread(second, call.real["self"]) * alpha
    if call.operation == "sub" and _is_own_mean(call):
        return first
    if call.operation == "sub" and _is_own_tanh(call):
        return activation(net, _tanhshrink(call))
    return first + second * alpha


def _is_own_mean(call: Call) -> bool:
    """Whether the call is x - mean(x): centring, which is dropped."""
    first, second = call.node.args
    return second.target == aten.mean.dim and second.args[0] is first


def _is_own_tanh(call: Call) -> bool:
    """Whether the call is x - tanh(x), as torch writes its Tanhshrink."""
    first, second = call.node.args
    return second.target == aten.tanh.default and second.args[0] is first


def _tanhshrink(call: Call) -> Call:
    args, real = {"x": call.args["self"]}, {"x": call.real["self"]}
    return Call(call.node, "tanhshrink", lambda x: x - torch.tanh(x), args, real, {"x": PATH})


def multiply(net: Network, call: Call) -> Tensor:
    """× c² in g for a constant or a learned scale, in h for a tensor of the sample; products."""
    name, other = ("self", "other") if call.kinds["self"] == PATH else ("other", "self")
    if call.kinds[other] == PATH:
        other = net.gate_of(call)
        name = "self" if other == "other" else "other"
    path, factor = call.args[name], call.real[other]
    counts = net.weighted if call.kinds[other] == PLAIN else net.gated
    return path * factor**2 if counts else spread(path, factor)


def add_product(net: Network, call: Call) -> Tensor:
    """x + value · y · z, where one of y and z may carry a path."""
    (name,) = [n for n in ("tensor1", "tensor2") if call.kinds[n] == PATH]
    factor = call.real["tensor2" if name == "tensor1" else "tensor1"] * call.args["value"]
    product = call.args[name]
    product = product * factor**2 if net.weighted else spread(product, factor)
    if call.kinds["self"] == PATH:
        return call.args["self"] + product
    return spread(product, call.real["self"])


def divide(net: Network, call: Call) -> Tensor:
    """As multiplying by the reciprocal."""
    path, divisor = call.path, call.real["other"]
    counts = net.weighted if call.kinds["other"] == PLAIN else net.gated
    return path / divisor**2 if counts else spread(path, divisor)


def concatenate(net: Network, call: Call) -> Tensor:
    """Side by side; members without a path are zeros."""
    members = zip(call.args["tensors"], call.real["tensors"], call.kinds["tensors"], strict=True)
    paths = [path if kind == PATH else torch.zeros_like(real).double()
             for path, real, kind in members]  # fmt: skip
    return call(tensors=paths)


def masked_fill(net: Network, call: Call) -> Tensor:
    """A constant that is filled in starts no path."""
    return call(value=0)


def squared(net: Network, call: Call) -> Tensor:
    """The square of a rectified z is an activation as well: × φ(z) once more."""
    return call.path * call.z**2 if net.gated else call.path


RULES: dict[str, Rule] = {}


def register(rule: Rule, *operations: str) -> None:
    """State the rule of aten operations, by name."""
    RULES.update(dict.fromkeys(operations, rule))


BOUNDED = ["sigmoid", "hardsigmoid", "tanh"]  # the gate of a product, by precedence
SOFTMAX = {"softmax", "_softmax"}
PRODUCTS = {"matmul", "mm", "bmm", "einsum", "baddbmm"}
SIZES = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like"}
CONDITIONS = {"eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin"}
GATES = {"pow", "square", "sqrt", "rsqrt", "norm", "linalg_vector_norm", "var", "std", "exp"}
GATES |= {"reciprocal", "abs"}
RECTIFIED = {"relu", "relu6", "leaky_relu", "clamp"}  # whose square is an activation

register(linear, "linear", "conv1d", "conv2d", "conv3d")
register(linear, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
register(activation, "relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "celu")
register(activation, "selu", "gelu", "silu", "mish", "hardswish", "softplus", "threshold")
register(activation, "hardshrink", "softshrink", "log_sigmoid", "clamp", *BOUNDED)
register(batch_norm, "batch_norm")
register(layer_norm, "layer_norm")
register(rms_norm, "rms_norm")
register(group_norm, "group_norm", "instance_norm")
register(max_pool, "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices")
register(max_pool, "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
register(largest, "amax", "max")
register(absolute, "upsample_bicubic2d")
register(pad, "pad", "constant_pad_nd")
register(masked_fill, "masked_fill")
register(squared, "pow", "square")
register(add, "add", "sub", "rsub")
register(multiply, "mul")
register(add_product, "addcmul")
register(divide, "div")
register(concatenate, "cat", "stack")

MOVING = ["clone", "contiguous", "flatten", "unflatten", "reshape", "view", "_unsafe_view"]
MOVING += ["permute", "transpose", "t", "movedim", "expand", "expand_as", "squeeze", "unsqueeze"]
MOVING += ["getitem", "chunk", "split", "split_with_sizes", "unbind", "roll", "narrow", "select"]
MOVING += ["slice", "flip", "repeat", "repeat_interleave", "reshape_as", "view_as", "index"]
MOVING += ["swapaxes", "swapdims", "moveaxis", "mT", "numpy_T", "index_select", "tensor_split"]
MOVING += ["unsafe_chunk", "alias"]
POOLED = ["avg_pool1d", "avg_pool2d", "avg_pool3d", "mean", "sum"]
POOLED += ["adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"]
POOLED += ["upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"]
POOLED += ["upsample_bilinear2d", "upsample_trilinear3d"]
POOLED += ["channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "im2col", "unfold"]
SAME = ["dropout", "feature_dropout", "alpha_dropout", "to", "_to_copy", "type_as", "neg"]
register(as_it_is, *MOVING, *POOLED)
register(identity, *SAME)

# what logits may go through between the product and the softmax
LOGITS_OPERATIONS = {*MOVING, *SAME, "add", "sub", "mul", "div", "masked_fill", "where", "linear",
                     "conv2d", "tanh", "clamp"}  # fmt: skip
