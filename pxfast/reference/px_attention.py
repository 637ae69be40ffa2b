"""The rules of attention: A is a gate on the value path, Σ_j A_ij² h_v[j], in g the mean over the
allowed tokens, (1/T_i) Σ_j g_v[j].

Queries and keys only open that gate. What opens it is ℓ = Σ_samples Σ_heads Σ_(i,j) Σ_c q̃_ic k̃_jc
over the allowed pairs, with q̃ and k̃ the path sums behind them, ones where a factor has no path.

Written in one call or in several: between the product of queries and keys and the softmax, the
network carries Σ_c q̃_ic k̃_jc where the real one has logits; behind the softmax, the share 1/T_i of
every allowed token where the real one has A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pxfast.reference.px_graph import (
    Graph,
    Node,
    arguments,
    function,
    key,
)
from pxfast.reference.px_rules import (
    ATTENTION,
    LOGITS,
    LOGITS_OPERATIONS,
    MOVING,
    PATH,
    PLAIN,
    PRODUCTS,
    RULES,
    SAME,
    SOFTMAX,
    Call,
    linear,
    register,
)

FORBIDDEN = 50.0  # this far below its row's maximum, or further


def shares(mask: Tensor, dim: int) -> Tensor:
    """Return 1/T where the mask, which is added to the logits, allows a token, 0 elsewhere."""
    allowed = (mask > mask.amax(dim, keepdim=True) - FORBIDDEN).double()
    return allowed / allowed.sum(dim, keepdim=True)


def opened(products: Tensor, share: Tensor) -> Tensor:
    """Return ℓ: the sum of Σ_c q̃_ic k̃_jc over the allowed pairs."""
    return (products * (share > 0)).sum()


def scaled_dot_product_attention(net: Any, call: Call) -> Tensor:
    """A = softmax(q kᵀ · scale + mask), [..., L, S], written out; then A v."""
    q, k, v = (call.real[name] for name in ("query", "key", "value"))
    path = {name: _or_ones(call, name) for name in ("query", "key", "value")}
    if call.args["enable_gqa"]:
        group = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
        for name in ("key", "value"):
            path[name] = path[name].repeat_interleave(group, -3)
    scale = call.args["scale"] or 1 / math.sqrt(q.shape[-1])
    logits = q @ k.mT * scale + _additive(call.real["attn_mask"], call, q, k)
    A = logits.softmax(-1)
    fixed = _additive(fixed_mask(net, call.node, "attn_mask"), call, q, k)
    share = shares(fixed.expand_as(A), -1)
    result = (A**2 if net.gated else share) @ path["value"]
    return net.product(result, opened(path["query"] @ path["key"].mT, share))


def _or_ones(call: Call, name: str) -> Tensor:
    """Return the path sums of an argument, ones if it has no path."""
    return call.args[name] if call.kinds[name] == PATH else torch.ones_like(call.real[name])


def _additive(mask: Tensor | None, call: Call, q: Tensor, k: Tensor) -> Tensor:
    """Return what is added to the logits: 0 where a mask of bools is true, -∞ where it is not."""
    if mask is None:
        mask = torch.zeros(q.shape[-2], k.shape[-2], dtype=q.dtype)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    if call.args["is_causal"]:
        later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
        mask = mask.masked_fill(later, -torch.inf)
    return mask


def fixed_mask(net: Any, node: Node, name: str) -> Tensor:
    """Return what is added to logits along the way to the argument `name` of `node`, learned parts
    apart: zeros where queries and keys, a learned bias or a table of positions come in."""
    source, value = arguments(node)[name], net.real.received[node][name]
    graph: Graph = net.graph
    if not isinstance(source, fx.Node):
        return value
    if graph.kinds[source] == PLAIN and not graph.is_learned(source):
        return value
    operation, args = key(source), net.real.received.get(source)
    if operation in ("add", "sub"):
        first, second = fixed_mask(net, source, "self"), fixed_mask(net, source, "other")
        return first + second if operation == "add" else first - second
    if operation == "baddbmm":
        return fixed_mask(net, source, "self") * args["beta"]
    if operation in ("mul", "div"):  # logits and a mask are scaled; a learned table stays out
        scaled = [n for n in ("self", "other") if _kind(graph, source, n) != PLAIN]
        changed = {n: fixed_mask(net, source, n) for n in scaled}
        return function(source)(**args | changed) if scaled else torch.zeros_like(value)
    if operation in ("masked_fill", "where") or operation in MOVING:
        changed = {n: fixed_mask(net, source, n) for n in ("self", "other") if n in args}
        return function(source)(**args | changed)
    if operation in SAME:
        return fixed_mask(net, source, next(iter(args)))
    return torch.zeros_like(value)


def _kind(graph: Graph, node: Node, name: str) -> str:
    argument = arguments(node)[name]
    return graph.kinds[argument] if isinstance(argument, fx.Node) else PLAIN


def product(net: Any, call: Call) -> Tensor:
    """Queries and keys: Σ_c q̃_ic k̃_jc. A v: A² in h, 1/T in g, on the path sums of v."""
    if net.graph.kinds[call.node] == LOGITS:
        return _applied(call, lambda path, real, kind: path if kind == PATH else real * 0 + 1)
    names = tuple(name for name in call.args if name in FACTORS.get(call.operation, ()))
    if [call.kinds[name] for name in names] == [PATH, PATH]:
        return _without_softmax(net, call, names)
    result = _applied(call, lambda path, real, kind: _gate(net, path, real, kind))
    return net.product(result, net.opened[source_of(net.graph, call.node)])


def _without_softmax(net: Any, call: Call, names: tuple[str, ...]) -> Tensor:
    """Attention without a softmax: the squared gate of the data, in g ones, on the path sums."""
    gate = net.gate_of(call, names)
    real = call.real[gate].double()
    weights = real**2 if net.gated else torch.ones_like(real)
    result = torch.matmul(*(weights if name == gate else call.args[name] for name in names))
    return net.product(result, net.opening_of(arguments(call.node)[gate]))


def _gate(net: Any, path: Any, real: Any, kind: str) -> Tensor:
    """Return what a factor of A v multiplies with."""
    if kind not in (PATH, ATTENTION):
        raise TypeError("reference.px: no rule for a product of a path and a tensor without one")
    return real**2 if kind == ATTENTION and net.gated else path


def _applied(call: Call, factor: Callable[[Any, Any, str], Tensor]) -> Tensor:
    """Return the product of the factors that `factor` makes of path sum, value and kind."""
    if call.operation == "einsum":
        members = zip(call.args["tensors"], call.real["tensors"], call.kinds["tensors"],
                      strict=True)  # fmt: skip
        return torch.einsum(call.args["equation"], [factor(*member) for member in members])
    first, second = [name for name in call.args if name in FACTORS[call.operation]]
    return torch.matmul(*(factor(call.args[n], call.real[n], call.kinds[n])
                          for n in (first, second)))  # fmt: skip


FACTORS = {
    "matmul": ("self", "other"), "mm": ("self", "mat2"), "bmm": ("self", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}  # fmt: skip


def softmax(net: Any, call: Call) -> Tensor:
    """1/T for every allowed token; notes what opens it."""
    mask = fixed_mask(net, call.node, "self").expand_as(call.z)
    share = shares(mask, call.args["dim"])
    net.opened[call.node] = opened(call.args["self"], share)
    return share


def carried(net: Any, call: Call) -> Tensor:
    """What logits and attention go through: moved as they are, else (scaled, masked) unchanged.

    Weights that mix the logits of several heads feed the softmax, so ℓ counts them; a mix behind it
    is part of A, and leaves the mean over the allowed tokens what it is.
    """
    kind = net.graph.kinds[call.node]
    if call.operation in MOVING:
        return call()
    if kind == LOGITS and RULES[call.operation] is linear:
        return linear(net, call)
    (which,) = [name for name, k in call.kinds.items() if k == kind]
    if call.operation not in LOGITS_OPERATIONS:
        raise TypeError(f"reference.px: no rule for {call.operation!r} of {kind} ({call.node})")
    return call.args[which].expand_as(net.real.returned[call.node])


def source_of(graph: Graph, node: Node) -> Node:
    """Return the softmax whose result `node` is given, directly or moved, scaled and mixed."""
    (attention,) = [n for n in node.all_input_nodes if graph.kinds[n] == ATTENTION]
    return attention if key(attention) in SOFTMAX else source_of(graph, attention)


register(scaled_dot_product_attention, "scaled_dot_product_attention")
register(product, *PRODUCTS)
register(softmax, *SOFTMAX)
