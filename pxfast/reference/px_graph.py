"""The graph of a model: the torch operations that its own forward performs on given inputs."""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.nn.utils import parametrize, prune

from pxfast.reference.px_rules import (
    ATTENTION,
    CONDITIONS,
    GATE,
    GATES,
    LOGITS,
    LOGITS_OPERATIONS,
    MOVING,
    PATH,
    PLAIN,
    PRODUCTS,
    RECTIFIED,
    SAME,
    SIZES,
    SOFTMAX,
)

Node: TypeAlias = Any  # fx.Node, whose arguments are declared as a union of everything


@dataclass
class Graph:
    """The operations of a model on the inputs it was traced with, as aten calls."""

    module: fx.GraphModule
    masks: dict[str, Tensor]  # 0/1 in float64, by the weight's name
    names: dict[int, str]  # the name of a parameter, by its id (tied ones: the first)
    kinds: dict[Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find what every node carries."""
        for node in self.nodes:
            self.kinds[node] = self._kind(node)
        self._refuse_overwritten_views()

    @property
    def nodes(self) -> list[Node]:
        """The nodes in the order in which they run."""
        return list(self.module.graph.nodes)

    def _kind(self, node: Node) -> str:
        kinds = {self.kinds[n] for n in node.all_input_nodes}
        operation = key(node)
        if node.op == "placeholder":
            return PATH
        if operation in SIZES or not kinds - {PLAIN}:
            return PLAIN
        if operation in SOFTMAX and kinds & {PATH, LOGITS}:
            return ATTENTION
        if LOGITS in kinds:
            return LOGITS
        if operation in PRODUCTS and PATH in kinds:
            return LOGITS if self._is_of_queries_and_keys(node, kinds) else PATH
        if PATH in kinds and (operation not in GATES | CONDITIONS or _squares_rectified(node)):
            return PATH
        return ATTENTION if ATTENTION in kinds else GATE

    def _is_of_queries_and_keys(self, node: Node, kinds: set[str]) -> bool:
        """Whether a product of two tensors, at least one of them with a path, makes logits."""
        if ATTENTION in kinds:
            return False
        return _reaches_softmax(node)

    def _refuse_overwritten_views(self) -> None:
        """Refuse an operation in place on paths, if what it overwrites is read under another name.

        Names that stay valid are those of the operation's own result and of what is made from it.
        """
        memory: dict[Node, Node] = {}  # the node that allocated what a node looks at
        overwritten: dict[Node, list[Node]] = {}
        born: dict[Node, int] = {}
        for time, node in enumerate(self.nodes):
            for read in node.all_input_nodes:
                for last in overwritten.get(memory[read], []):
                    if born[read] < born[last] and node is not last:
                        raise TypeError(f"reference.px: {last.name!r} overwrites {read.name!r}")
            born[node] = time
            inputs = node.all_input_nodes
            memory[node] = memory[inputs[0]] if inputs and _is_view(node) else node
            carried = {self.kinds[n] for n in inputs} - {PLAIN}
            if is_in_place(node) and carried:
                overwritten.setdefault(memory[node], []).append(node)

    def where(self, node: Node) -> str:
        """Return the name of the module that performs the operation."""
        return node.meta.get("module") or "the model"

    def weight(self, node: Node, used: Tensor) -> tuple[str, Tensor]:
        """Return the name and the mask of the weight [O, ...] that `node` uses.

        A weight that is computed is named after the largest parameter that it is computed from; a
        0/1 tensor that multiplies it is a mask. A fixed kernel, computed from none, has no name.
        """
        source = arguments(node)["weight"]
        mask = torch.ones_like(used)
        if key(source) == "mul":
            for factor in source.args:
                if isinstance(factor, fx.Node) and factor.op == "get_attr":
                    value = self.attribute(factor)
                    if id(value) not in self.names and _is_binary(value):
                        mask = mask * value
        sources = [n for n in (source, *ancestors(source)) if n.op == "get_attr"]
        found = [p for p in map(self.attribute, sources) if id(p) in self.names]
        if not found:
            return "", mask
        name = self.names[id(max(found, key=Tensor.numel))]
        if name in self.masks:
            whole = self.parameter(source) is not None
            mask = mask * (self.moved(source, self.masks[name]) if whole else self.masks[name])
        return name, mask

    def parameter(self, source: Node) -> Tensor | None:
        """Return the parameter whose entries `source` holds, some of them perhaps and moved.

        None if it is computed.
        """
        while key(source) in MOVING:
            source = source.args[0]
        value = self.attribute(source) if source.op == "get_attr" else None
        return value if id(value) in self.names else None

    def moved(self, source: Node, value: Tensor) -> Any:
        """Return from a tensor like the parameter what `source` takes from the parameter."""
        if key(source) not in MOVING:
            return value
        first, *_ = args = arguments(source)
        return function(source)(**args | {first: self.moved(args[first], value)})

    def is_learned(self, node: Node) -> bool:
        """Whether a parameter is among what `node` is computed from."""
        sources = (n for n in (node, *ancestors(node)) if n.op == "get_attr")
        return any(id(self.attribute(n)) in self.names for n in sources)

    def attribute(self, node: Node) -> Tensor:
        """Return the tensor that a get_attr node reads."""
        return operator.attrgetter(node.target)(self.module)


class Copy:
    """A copy of a model on the CPU, in float64 and eval mode, and the masks that it carries."""

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor] | None, batchnorm: str
    ) -> None:
        if batchnorm not in ("running", "data"):
            raise ValueError(f"batchnorm must be 'running' or 'data', got {batchnorm!r}")
        self.order = [_plain_name(name) for name, _ in model.named_parameters()]
        self.dtypes = {p.dtype for p in model.parameters()}
        self.model = model = _copy(model).cpu().double().eval().requires_grad_(False)
        own = _unwrap_masks(model)
        if batchnorm == "data":
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.running_mean = module.running_var = None
        self.names = {id(p): name for name, p in reversed(list(model.named_parameters()))}
        self.masks: dict[str, Tensor] = {}
        for name, mask in itertools.chain(own.items(), (masks or {}).items()):
            self._add_mask(name, mask)

    def _add_mask(self, name: str, mask: Tensor) -> None:
        """Multiply the masks of the weight called `name` by `mask`."""
        parameter = dict(self.model.named_parameters(remove_duplicate=False)).get(name)
        if parameter is None or parameter.shape != mask.shape:
            expected = "no such parameter" if parameter is None else list(parameter.shape)
            raise ValueError(f"mask {name!r}: expected {expected}, got {list(mask.shape)}")
        name = self.names[id(parameter)]
        self.masks[name] = self.masks.get(name, 1.0) * mask.cpu().double()

    @contextlib.contextmanager
    def default_dtype(self) -> Iterator[None]:
        """Make float64 the default, if it is the model's dtype that is the default now.

        Tensors that its forward makes are then float64, too.
        """
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64 if default in self.dtypes else default)
        try:
            yield
        finally:
            torch.set_default_dtype(default)

    def graph(self, x: Tensor) -> Graph:
        """Record what the model does to `x`, [N, ...], and to its outputs: a list of tensors.

        Tracing stops before autograd takes composite operations apart: a linear layer, a norm and
        an attention remain one node each.
        """

        def outputs(x: Tensor) -> list[Tensor]:
            return list(_leaves(self.model(x)))

        with _noting_modules(self.model):
            module = make_fx(outputs, tracing_mode="real", pre_dispatch=True)(x.clone())
        for node in reversed(list(module.graph.nodes)):
            if key(node) in ("_enter_autocast", "_exit_autocast"):  # all is in float64
                module.graph.erase_node(node)
        module.graph.eliminate_dead_code()
        return Graph(module, self.masks, self.names)


@contextlib.contextmanager
def _noting_modules(model: nn.Module) -> Iterator[None]:
    """Write the name of the innermost module into every node that is traced meanwhile."""
    before: list[Node] = []

    def nodes() -> Iterator[Node]:
        mode: Any = get_proxy_mode()
        return reversed(mode.tracer.graph.nodes)  # the latest first

    def note(name: str) -> None:
        first = before.pop()
        for node in itertools.takewhile(lambda node: node is not first, nodes()):
            node.meta.setdefault("module", name)

    hooks = []
    for name, module in model.named_modules():
        hooks += [
            module.register_forward_pre_hook(lambda *_: before.append(next(nodes()))),
            module.register_forward_hook(lambda *_, name=name: note(name)),
        ]
    yield  # an error leaves nothing behind: the model is a copy
    for hook in hooks:
        hook.remove()


def _leaves(result: Any) -> Iterator[Tensor]:
    """Yield the floating-point outputs of a model; of a mapping with "logits", those alone."""
    if isinstance(result, Mapping):
        result = [result["logits"]] if "logits" in result else list(result.values())
    if isinstance(result, list | tuple):
        for member in result:
            yield from _leaves(member)
    elif isinstance(result, Tensor) and result.is_floating_point():
        yield result


def key(node: Node) -> str:
    """Return the operation's name, without "aten::" and without the _ of an operation in place."""
    if node.op != "call_function":
        return ""
    if not hasattr(node.target, "_schema"):
        return node.target.__name__
    name = node.target._schema.name.removeprefix("aten::")
    return name.removesuffix("_") if not name.endswith("__") else name


def is_in_place(node: Node) -> bool:
    """Whether the operation overwrites its first argument."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _is_view(node: Node) -> bool:
    """Whether the result may share the memory of the first argument."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.op == "call_function"
    return any(result.alias_info is not None for result in schema.returns)


def function(node: Node) -> Any:
    """Return the operation, out of place, to be called with `arguments`."""
    if not hasattr(node.target, "_schema"):
        return lambda self, index: node.target(self, index)
    if key(node) in ("view", "_unsafe_view"):  # path sums may lie differently in memory
        return lambda self, size: self.reshape(size)
    name = node.target._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name.removesuffix("_")) if is_in_place(node) else None
    overload = node.target._overloadname
    return node.target if packet is None else getattr(packet, overload)


def arguments(node: Node) -> dict[str, Any]:
    """Return the arguments of the operation by their names, defaults included."""
    if not hasattr(node.target, "_schema"):
        return dict(zip(("self", "index"), node.args, strict=True))
    declared = node.target._schema.arguments
    given = {a.name: a.default_value for a in declared if a.has_default_value()}
    given |= dict(zip((a.name for a in declared), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given[a.name] for a in declared if a.name in given}


def ancestors(node: Node) -> set[Node]:
    """Return every node that `node` is computed from."""
    found: set[Node] = set()
    todo = list(node.all_input_nodes)
    while todo:
        if (parent := todo.pop()) not in found:
            found.add(parent)
            todo += parent.all_input_nodes
    return found


def _reaches_softmax(node: Node) -> bool:
    """Whether a softmax takes `node`, perhaps after operations that logits go through."""
    return any(
        key(user) in SOFTMAX or (key(user) in LOGITS_OPERATIONS and _reaches_softmax(user))
        for user in node.users
    )


def _squares_rectified(node: Node) -> bool:
    """Whether `node` squares what came out of a ReLU."""
    if key(node) == "pow" and node.args[1] != 2:
        return False
    source = node.args[0]
    while key(source) in (*MOVING, *SAME):
        source = source.args[0]
    return key(node) in ("pow", "square") and key(source) in RECTIFIED


def _copy(model: nn.Module) -> nn.Module:
    """Deep-copy `model`, also where torch.nn.utils.prune left a computed tensor in a module."""
    computed = [t for m in model.modules() for t in vars(m).values()
                if isinstance(t, Tensor) and not t.is_leaf]  # fmt: skip
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})


def _unwrap_masks(model: Any) -> dict[str, Tensor]:
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


def _parametrised_mask(parametrisation: Any) -> Tensor | None:
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
