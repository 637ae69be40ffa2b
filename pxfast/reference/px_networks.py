"""The real network and the auxiliary networks as passes over one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from pxfast.reference.px_attention import carried, source_of
from pxfast.reference.px_graph import (
    Graph,
    Node,
    ancestors,
    arguments,
    function,
    key,
)
from pxfast.reference.px_rules import (
    ATTENTION,
    BOUNDED,
    GATE,
    LOGITS,
    MOVING,
    PATH,
    PLAIN,
    POOLED,
    PRODUCTS,
    RULES,
    SAME,
    SOFTMAX,
    Call,
    activation,
    divide,
    linear,
    multiply,
)


class Real:
    """The real, masked network; records what every operation received and what it returned."""

    def __init__(self, graph: Graph, x: Tensor) -> None:
        """Run the network on `x`, [N, ...]."""
        self.graph, self.x = graph, x
        self.received: dict[Node, dict[str, Any]] = {}
        self.returned: dict[Node, Any] = {}
        env: dict[Node, Any] = {}
        with torch.no_grad():
            for node in graph.nodes:
                if node.op == "placeholder":
                    env[node] = x.clone()
                elif node.op == "get_attr":
                    env[node] = graph.attribute(node)
                elif node.op == "call_function":
                    env[node] = self._run_node(node, env)

    def _run_node(self, n: Node, env: dict[Node, Any]) -> Any:
        """Run `n`, its weight masked; copies are recorded, for operations in place."""
        args = {name: map_arg(value, env.__getitem__) for name, value in arguments(n).items()}
        if RULES.get(key(n)) is linear:
            args["weight"] = args["weight"] * self.graph.weight(n, args["weight"])[1]
        self.received[n] = map_aggregate(args, _clone)
        result = n.target(**args) if hasattr(n.target, "_schema") else function(n)(**args)
        self.returned[n] = map_aggregate(result, _clone)
        return result


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class Auxiliary:
    """One of the networks h, g and joint; its run leaves the path sums of its output in `sums`."""

    def __init__(
        self, real: Real, x: Tensor, *, gated: bool, weighted: bool, structure: bool = False
    ) -> None:
        """Run it on `x`; with `structure`, every θ and M is 1, and what comes out is which path
        exists.

        The real network gives the gates; to g, only constants and learned scales.
        """
        self.real, self.graph = real, real.graph
        self.gated, self.weighted, self.structure = gated, weighted, structure
        self.squares: dict[str, Tensor] = {}  # θ²·M, the leaves that are differentiated
        self.masks: dict[str, Tensor] = {}
        self.env: dict[Node, Any] = {}
        self.entering: dict[Node, Tensor] = {}  # the path sums that enter an activation
        self.opened: dict[Node, Tensor] = {}  # ℓ of a softmax
        self.products: list[tuple[Tensor, Tensor]] = []  # gated output, ℓ of what opens the gate
        self.sums = torch.empty(0, 0)  # [N, K]
        for node in self.graph.nodes:
            self._run_node(node, x)

    def _run_node(self, n: Node, x: Tensor) -> None:
        """Replace the operation by its rule, where a path goes through it."""
        kind = self.graph.kinds[n]
        if n.op == "placeholder":
            self.env[n] = x
        elif n.op == "output":
            self.sums = self._flattened(n)
        elif kind in (PATH, LOGITS, ATTENTION):
            rule = RULES.get(key(n))
            if rule is None:
                raise TypeError(
                    f"reference.px: no rule for {key(n)!r} (node {n.name!r} in "
                    f"{self.graph.where(n)}); add one to pxfast.reference.px_rules.RULES"
                )
            if kind != PATH and key(n) not in SOFTMAX and rule is not RULES["matmul"]:
                rule = carried
            call = self._call(n)
            if rule is activation:
                self.entering[n] = call.path
            self.env[n] = rule(self, call)
            if rule is multiply:
                self._note_product(call)

    def _call(self, n: Node) -> Call:
        """Gather what a rule may look at."""
        nodes, real = arguments(n), self.real.received[n]

        def kind(argument: Any) -> Any:
            if isinstance(argument, list | tuple):
                return [kind(member) for member in argument]
            return self.graph.kinds[argument] if isinstance(argument, fx.Node) else PLAIN

        def path(argument: Any, value: Any) -> Any:
            if isinstance(argument, list | tuple):
                return [path(*pair) for pair in zip(argument, value, strict=True)]
            return self.env.get(argument, value) if isinstance(argument, fx.Node) else value

        args = {name: path(argument, real[name]) for name, argument in nodes.items()}
        kinds = {name: kind(argument) for name, argument in nodes.items()}
        return Call(n, key(n), function(n), args, real, kinds)

    def weight(self, call: Call) -> Tensor:
        """Return the mask M (h), or θ²·M as a leaf (g, joint) of the weight this call applies."""
        theta, source = call.real["weight"], arguments(call.node)["weight"]  # masked
        name, mask = self.graph.weight(call.node, theta)
        if not name:
            return theta**2 if self.weighted else mask
        parameter = self.graph.parameter(source)
        if parameter is None:  # computed: a θ of its own
            self.masks[name] = mask
        else:  # whole, or some of its rows
            self.masks[name] = self.graph.masks.get(name, torch.ones_like(parameter))
            theta = parameter * self.masks[name]
        if not (self.weighted or self.structure):
            return mask
        if name not in self.squares:
            square = torch.ones_like(theta) if self.structure else theta**2
            self.squares[name] = square.detach().clone().requires_grad_()
        square = self.squares[name]
        return square if parameter is None else self.graph.moved(source, square)

    def product(self, result: Tensor, opening: Tensor) -> Tensor:
        """Note a gated value, whose cotangent is asked for, and the ℓ of what opens its gate."""
        if self.weighted and not result.requires_grad:
            result.requires_grad_()
        self.products.append((result, opening))
        return result

    def _note_product(self, call: Call) -> None:
        """Note a product gate · value, if a path opens the gate."""
        names = [n for n in ("self", "other") if call.kinds[n] != PLAIN]
        if len(names) < 2:
            return
        gates = [n for n in names if call.kinds[n] != PATH] or [self.gate_of(call)]
        gate = arguments(call.node)[gates[0]]
        if self.graph.kinds[gate] == ATTENTION:
            opening = self.opened[gate if key(gate) in SOFTMAX else source_of(self.graph, gate)]
        elif (opening := self.opening_of(gate)) is None:
            return
        self.product(self.env[call.node], opening)

    def gate_of(self, call: Call, factors: tuple[str, str] = ("self", "other")) -> str:
        """Return which of two factors is the gate: the name of an argument.

        The one computed from the other; else the bounded one; else the only one that came out of
        an activation; else, of a product entry by entry, the one that fewer layers lie behind.
        """
        first, second = (arguments(call.node)[name] for name in factors)
        for one, other, name in ((first, second, factors[0]), (second, first, factors[1])):
            if other in ancestors(one):
                return name
        sources = [self._source(node) for node in (first, second)]
        keys = [key(node) if node in self.entering else "" for node in sources]
        layers = [self._layers(node) for node in (first, second)]
        for bounded in BOUNDED:
            if (keys[0] == bounded) != (keys[1] == bounded):
                return factors[keys[1] == bounded]
        if (keys[0] == "") != (keys[1] == ""):
            return factors[keys[0] == ""]
        if layers[0] != layers[1] and call.operation not in PRODUCTS:
            return factors[layers[0] > layers[1]]
        raise TypeError(f"reference.px: cannot tell which factor of {call.node.name!r} is the gate")

    def opening_of(self, gate: Node) -> Tensor | None:
        """Return ℓ of a gate: the sum of the path sums that enter its activation, or of its own."""
        if (opener := self._source(gate)) in self.entering:
            return self.entering[opener].sum()
        return self.env[gate].sum() if self.graph.kinds[gate] == PATH else None

    def _layers(self, node: Node) -> int:
        """Return how many layers lie behind `node`."""
        return sum(RULES.get(key(n)) is linear for n in {node, *ancestors(node)})

    def _source(self, node: Node) -> Node:
        """Return the operation that `node` came out of, if only reshaped and scaled since."""
        while key(node) in (*MOVING, *POOLED, *SAME) or RULES.get(key(node)) in (multiply, divide):
            inputs = [n for n in node.all_input_nodes if self.graph.kinds[n] in (PATH, GATE)]
            if not inputs or (RULES[key(node)] in (multiply, divide) and len(inputs) > 1):
                return node
            node = inputs[0]
        return node

    def _flattened(self, n: Node) -> Tensor:
        """Concatenate all outputs per sample."""
        paths = [self.env[node].flatten(1) for node in n.args[0] if self.graph.kinds[node] == PATH]
        if not paths:
            raise ValueError("reference.px: the output does not depend on the input")
        return torch.cat(paths, 1)
