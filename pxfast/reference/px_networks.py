"""The real network and the auxiliary networks as passes over one traced graph."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.nn.utils import parametrize, prune

from pxfast.reference.px_rules import (
    BOUNDED,
    GATE,
    GATES,
    LEAVES,
    PATH,
    PLAIN,
    RULES,
    SIZES,
    SOFTMAX,
    Call,
    activation,
    as_it_is,
    divide,
    identity,
    interpolate,
    linear,
    multiply,
)

Node: TypeAlias = Any  # fx.Node, whose arguments are declared as a union of everything
Layer: TypeAlias = Any  # nn.Module, whose attributes are declared as Tensor | Module


@dataclass
class Traced:
    """A copy of the model on the CPU, in float64 and eval mode; its graph; the masks it carries."""

    module: fx.GraphModule
    masks: dict[str, Tensor]  # 0/1 in float64, by the weight's name
    names: dict[int, str]  # the name of a parameter, by its id (tied ones: the first)
    order: list[str]  # the model's parameter names
    kinds: dict[Node, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, masks: Mapping[str, Tensor] | None, batchnorm: str) -> Traced:
        """Copy and trace `model`."""
        if batchnorm not in ("running", "data"):
            raise ValueError(f"batchnorm must be 'running' or 'data', got {batchnorm!r}")
        order = [_plain_name(name) for name, _ in model.named_parameters()]
        model = _copy(model).cpu().double().eval().requires_grad_(False)
        own = _unwrap_masks(model)
        if batchnorm == "data":
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.running_mean = module.running_var = None
        names = {id(p): name for name, p in reversed(list(model.named_parameters()))}
        graph = fx.Tracer(autowrap_functions=tuple(LEAVES)).trace(model)
        traced = cls(fx.GraphModule(model, graph), {}, names, order)
        for name, mask in itertools.chain(own.items(), (masks or {}).items()):
            traced._add_mask(model, name, mask)
        traced._find_kinds()
        return traced

    def _add_mask(self, model: nn.Module, name: str, mask: Tensor) -> None:
        """Multiply the masks of the weight called `name` by `mask`."""
        parameter = dict(model.named_parameters(remove_duplicate=False)).get(name)
        if parameter is None or parameter.shape != mask.shape:
            expected = "no such parameter" if parameter is None else list(parameter.shape)
            raise ValueError(f"mask {name!r}: expected {expected}, got {list(mask.shape)}")
        name = self.names[id(parameter)]
        self.masks[name] = self.masks.get(name, 1.0) * mask.cpu().double()

    def _find_kinds(self) -> None:
        """Tell paths from sizes and constants (PLAIN) and from values without a path (GATE)."""
        for node in self.module.graph.nodes:
            kinds = {self.kinds[n] for n in node.all_input_nodes}
            if node.op == "placeholder":
                self.kinds[node] = GATE if PATH in self.kinds.values() else PATH
            elif node.target in SIZES or not kinds & {PATH, GATE}:
                self.kinds[node] = PLAIN
            elif PATH in kinds and node.target not in GATES:
                self.kinds[node] = PATH
            else:
                self.kinds[node] = GATE

    def key(self, node: Node) -> Any:
        """Return the entry of RULES that `node` falls under: a module type, function or name."""
        if node.op != "call_module":
            return node.target
        types = type(self.module.get_submodule(node.target)).__mro__
        return next((kind for kind in types if kind in RULES), types[0])

    def weight(self, node: Node) -> tuple[str, Any, Tensor]:
        """Return the name, θ (None where the graph derives it from a parameter) and mask of `node`.

        A derived weight is named after its parameter. A 0/1 tensor that multiplies it is a mask.
        """
        if node.op == "call_module":
            layer: Layer = self.module.get_submodule(node.target)
            theta: Any = layer.weight
            name = self.names[id(theta)]
            return name, theta, self.masks.get(name, torch.ones_like(theta))
        source = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        mask = 1.0
        if source.op == "call_function" and source.target in (operator.mul, torch.mul):
            for factor in source.args:
                if factor.op == "get_attr" and _is_binary(self.attribute(factor)):
                    mask = self.attribute(factor)
        parameter = self._origin(source)
        if id(parameter) not in self.names:  # a fixed kernel: θ² is a constant
            return "", parameter, torch.ones_like(parameter)
        name = self.names[id(parameter)]
        theta = parameter if source.op == "get_attr" else None
        return name, theta, self.masks.get(name, torch.ones_like(parameter)) * mask

    def attribute(self, node: Node) -> Tensor:
        """Return the tensor that a get_attr node reads."""
        return operator.attrgetter(node.target)(self.module)

    def _origin(self, node: Node) -> Tensor:
        """Return the parameter with the most entries that a weight is computed from.

        If it is computed from none, the buffer that it is.
        """
        sources = [n for n in (node, *_ancestors(node)) if n.op == "get_attr"]
        found = [p for p in map(self.attribute, sources) if id(p) in self.names]
        if not found and node.op == "get_attr":
            return self.attribute(node)
        if not found:
            raise TypeError(f"reference.px: weight {node.name!r} is made of no parameter")
        return max(found, key=Tensor.numel)


def _copy(model: nn.Module) -> nn.Module:
    """Deep-copy `model`, also where torch.nn.utils.prune left a computed tensor in a module."""
    computed = [t for m in model.modules() for t in vars(m).values()
                if isinstance(t, Tensor) and not t.is_leaf]  # fmt: skip
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})


def _unwrap_masks(model: Layer) -> dict[str, Tensor]:
    """Make pruned and parametrised weights of `model` plain again and return their masks."""
    masks = {}
    for prefix, module in list(model.named_modules()):
        for name in [
            n[: -len("_mask")]
            for n, _ in module.named_buffers(recurse=False)
            if n.endswith("_mask") and hasattr(module, f"{n[: -len('_mask')]}_orig")
        ]:
            masks[_join(prefix, name)] = getattr(module, f"{name}_mask")
            prune.remove(module, name)
        for name in list(getattr(module, "parametrizations", {})):
            mask = _parametrised_mask(module.parametrizations[name])
            if mask is not None:
                masks[_join(prefix, name)] = mask
            parametrize.remove_parametrizations(module, name)
    return masks


def _parametrised_mask(parametrisation: Layer) -> Tensor | None:
    """Return the mask that a parametrisation multiplies with, if that is all it does."""
    if not hasattr(parametrisation, "original"):
        return None
    original, value = parametrisation.original, parametrisation.original
    response = torch.ones_like(original)
    for step in parametrisation:
        value, response = step(value), step(response)
    return response if _is_binary(response) and torch.equal(value, original * response) else None


def _is_binary(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _plain_name(name: str) -> str:
    """`layer.weight_orig` and `layer.parametrizations.weight.original` are `layer.weight`."""
    head, _, rest = name.partition("parametrizations.")
    return (head + rest.split(".")[0]) if rest else name.removesuffix("_orig")


def _ancestors(node: Node) -> set[Node]:
    """Return every node that `node` is computed from."""
    found: set[Node] = set()
    todo = list(node.all_input_nodes)
    while todo:
        if (parent := todo.pop()) not in found:
            found.add(parent)
            todo += parent.all_input_nodes
    return found


class Real(fx.Interpreter):
    """The real, masked network; records what every operation received and what it returned."""

    def __init__(self, traced: Traced) -> None:
        super().__init__(traced.module)
        self.traced = traced
        self.received: dict[Node, tuple[Any, ...]] = {}
        self.returned: dict[Node, Any] = {}

    @classmethod
    def of(cls, traced: Traced, x: Tensor) -> Real:
        """Run the network on `x`."""
        real = cls(traced)
        with torch.no_grad():
            real.run(x)
        return real

    def run_node(self, n: Node) -> Any:
        """Run `n`, its weight masked; copies are recorded, for operations in place."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        self.received[n] = map_aggregate(args, _clone)
        if RULES.get(self.traced.key(n)) is linear:
            _, theta, mask = self.traced.weight(n)
            if n.op == "call_module":
                module = self.fetch_attr(n.target)
                result = torch.func.functional_call(module, {"weight": theta * mask}, args, kwargs)
            elif len(args) > 1:
                result = n.target(args[0], args[1] * mask, *args[2:], **kwargs)
            else:
                result = n.target(*args, **kwargs | {"weight": kwargs["weight"] * mask})
        else:
            result = super().run_node(n)
        result = map_aggregate(result, _double)
        self.returned[n] = map_aggregate(result, _clone)
        return result


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _double(value: Any) -> Any:
    """Constants that the model makes in its forward are float32 by default."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floating else value


class Auxiliary(fx.Interpreter):
    """One of the networks h, g and joint; its run leaves the path sums of its output in `sums`."""

    def __init__(
        self,
        traced: Traced,
        *,
        gated: bool,
        weighted: bool,
        real: Real | None = None,
        structure: bool = False,
    ) -> None:
        """Takes the traced model and the recorded real network.

        With `structure`, every θ and M is 1: what comes out is which path exists.
        """
        super().__init__(traced.module, garbage_collect_values=False)
        self.traced, self.real = traced, real or Real(traced)
        self.sums = torch.empty(0, 0)  # [N, K]
        self.gated, self.weighted, self.structure = gated, weighted, structure
        self.squares: dict[str, Tensor] = {}  # θ²·M, the leaves that are differentiated
        self.masks: dict[str, Tensor] = {}
        self.entering: dict[Node, Tensor] = {}  # the path sums that enter an activation
        self.products: list[tuple[Tensor, Tensor]] = []  # gated output, Σ of what opens the gate

    def run_node(self, n: Node) -> Any:
        """Replace the operation by its rule, where a path goes through it."""
        kind = self.traced.kinds[n]
        if n.op == "placeholder" and kind == PATH:
            result = super().run_node(n)
            self.input_shape = result.shape[1:]
            return result
        if n.op == "output":
            self.sums = self._flatten_output(n)
            return self.sums
        if kind == GATE and n.op != "placeholder":
            return self.real.returned[n] if self.gated else None
        if kind == PLAIN or n.op == "placeholder":
            return map_aggregate(super().run_node(n), _double)
        rule = RULES.get(self.traced.key(n))
        if rule is None:
            raise TypeError(_no_rule(n, self.traced.key(n)))
        call = self._call(n)
        if rule is activation:
            self.entering[n] = call.args[0]
        result = rule(self, call)
        if _in_place(n, call.function):
            self.env[n.args[0]] = result
        gate = self._gate_factor(n, call) if rule is multiply else None
        if gate is not None:
            if self.weighted and not result.requires_grad:
                result.requires_grad_()  # its cotangent is asked for
            self.products.append((result, self._opening(gate)))
        return result

    def _gate_factor(self, n: Node, call: Call) -> Node | None:
        """Return the factor of a product that is a gate and that a path opens."""
        if call.kinds == (PATH, PATH):
            return n.args[self.gate_of(call)]
        gates = [arg for arg, kind in zip(n.args, call.kinds, strict=True) if kind == GATE]
        return gates[0] if gates and self._activation_before(gates[0]) is not None else None

    def _call(self, n: Node) -> Call:
        """Gather what a rule may look at."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        function = self.fetch_attr(n.target) if n.op == "call_module" else n.target
        if n.op == "call_method":
            name = n.target

            def function(x: Tensor, *rest: Any, **named: Any) -> Any:
                return getattr(x, name)(*rest, **named)

        def kind(arg: Any) -> Any:
            if isinstance(arg, list | tuple):
                return [kind(member) for member in arg]
            return self.traced.kinds[arg] if isinstance(arg, fx.Node) else PLAIN

        real = self.real.received[n] if self.gated else ()
        module = function if n.op == "call_module" else None
        kinds = tuple(kind(arg) for arg in n.args)
        return Call(n, function, module, args, kwargs, real, kinds)

    def weight(self, call: Call) -> Tensor:
        """Return the mask M (h), or θ²·M as a leaf (g, joint) of the weight this call applies."""
        name, theta, mask = self.traced.weight(call.node)
        if not name:
            return theta**2 if self.weighted else mask
        self.masks[name] = mask
        if not (self.weighted or self.structure):
            return mask
        if name not in self.squares:
            if theta is None:  # derived: its value is in the environment
                theta = call.args[1] if len(call.args) > 1 else call.kwargs["weight"]
            square = torch.ones_like(theta) if self.structure else theta**2 * mask
            self.squares[name] = square.detach().clone().requires_grad_()
        return self.squares[name]

    def gate_of(self, call: Call) -> int:
        """Return which of two factors is the gate: 0 or 1.

        The one computed from the other; else the bounded one; else the only one that came out of
        an activation.
        """
        factors = call.node.args
        for which in (0, 1):
            if factors[1 - which] in _ancestors(factors[which]):
                return which
        opened = [self._activation_before(factor) for factor in factors]
        keys = [None if node is None else self.traced.key(node) for node in opened]
        for bounded in BOUNDED:
            if (keys[0] in bounded) != (keys[1] in bounded):
                return 0 if keys[0] in bounded else 1
        if (keys[0] is None) != (keys[1] is None):
            return 0 if keys[1] is None else 1
        raise TypeError(f"reference.px: cannot tell which factor of {call.node.name!r} is the gate")

    def _activation_before(self, node: Node) -> Node | None:
        """Return the activation that `node` came out of, if only reshaped and scaled since."""
        while (rule := RULES.get(self.traced.key(node))) in (*MOVING, multiply, divide):
            inputs = [n for n in node.all_input_nodes if self.traced.kinds[n] in (PATH, GATE)]
            if rule in (multiply, divide) and len(inputs) != 1:
                return None
            node = inputs[0]
        if RULES.get(self.traced.key(node)) is not activation and node.target not in SOFTMAX:
            return None
        return node if self.traced.kinds[node.all_input_nodes[0]] == PATH else None

    def _opening(self, gate: Node) -> Tensor:
        """Return L: the sum of the path sums at the input of the gate's activation."""
        opened = self._activation_before(gate)
        if opened is not None and opened.target in SOFTMAX:
            return self.env[opened.args[0]].sum()
        return (self.env[gate] if opened is None else self.entering[opened]).sum()

    def _flatten_output(self, n: Node) -> Tensor:
        """Concatenate all outputs per sample; of a mapping with "logits", those alone."""
        (structure,) = n.args
        if isinstance(structure, Mapping) and "logits" in structure:
            structure = structure["logits"]
        outputs: list[Node] = []
        map_arg(structure, outputs.append)
        paths = [self.env[node].flatten(1) for node in outputs if self.traced.kinds[node] == PATH]
        if not paths:
            raise ValueError("reference.px: the output does not depend on the input")
        return torch.cat(paths, 1)


MOVING = (as_it_is, identity, interpolate)
_AUGMENTED = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def _in_place(n: Node, function: Any) -> bool:
    """Whether the operation also overwrites its first argument."""
    inplace = getattr(function, "inplace", False) or n.kwargs.get("inplace", False)
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    named = n.op != "call_module" and name.endswith("_") and not name.endswith("__")
    return inplace or named or n.target in _AUGMENTED


def _no_rule(n: Node, key: Any) -> str:
    stack = n.meta.get("nn_module_stack", {})
    where = list(stack)[-1] if stack else "the model"
    return (
        f"reference.px: no rule for {getattr(key, '__name__', key)!r} (node {n.name!r} in {where});"
        " add one to pxfast.reference.px_rules.RULES"
    )
