"""A model as a function of its weights: a criterion differentiates it and changes nothing.

Weights are substituted by torch.func.functional_call, those that parametrizations compute where
they are computed. Whatever a forward leaves behind (modes, buffers, attributes that hooks set,
random generators) is put back, also when an exception passes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from pxfast._version import __version__
from pxfast.batches import Batch, cannot_run, check_finite, to_device
from pxfast.criteria.weights import combined_masks, prunable_weights, stored_names, weight_values
from pxfast.errors import DataError, PxfastError
from pxfast.offload import Offloaded
from pxfast.paths.outputs import Select, selected
from pxfast.preparation import Choice, check_weights, evaluation, refuse_scripted
from pxfast.rng import preserved_rng
from pxfast.selection.scores import Scores
from pxfast.selection.weights import find_weight
from pxfast.unwrap import unwrapped

Statistics = Literal["running", "data"]
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Functional:
    """A model in evaluation mode as a function of its weights.

    Attributes:
        model: The model, which stays as it is.
        weights: θ by canonical name, of every prunable or masked weight, without its mask.
        masks: M by canonical name, bool: the model's own masks and those given, together.
        scored: Names of the weights that are to be scored, in the model's parameter order.
        stored: The name of the model's parameter behind a weight, unless a parametrization computes
            the weight.
        parameters: Every other parameter by its name in the model.
        buffers: Every buffer by its name in the model.
        dtype: Of all of these and of the inputs: float32 or float64.
        result: Dtype of the scores.
        device: Where the model is.
        output: What selects the output that counts; see `pxfast.score`.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    scored: tuple[str, ...]
    stored: dict[str, str]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    dtype: torch.dtype
    result: torch.dtype
    device: torch.device
    output: Select

    # ---- weights ---------------------------------------------------------------------------------

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Functional:
        """The same network with a function of every entry of its state in the entry's place."""
        state = self.model.state_dict()

        def mapped(tensors: Values) -> dict[str, Tensor]:
            return {
                name: function(tensor) if name in state and tensor.is_floating_point() else tensor
                for name, tensor in tensors.items()
            }

        return replace(
            self,
            weights={name: function(theta) for name, theta in self.weights.items()},
            parameters=mapped(self.parameters),
            buffers=mapped(self.buffers),
        )

    def masked(self, name: str, theta: Tensor) -> Tensor:
        """θ·M. A masked weight is 0 whatever θ holds there."""
        mask = self.masks.get(name)
        return theta if mask is None else torch.where(mask, theta, 0)

    def leaves(self) -> dict[str, Tensor]:
        """θ·M of the scored weights, each the start of a graph."""
        return {
            name: self.masked(name, self.weights[name]).clone().requires_grad_()
            for name in self.scored
        }

    # ---- forward and backward --------------------------------------------------------------------

    def __call__(
        self,
        weights: Values,
        batch: Batch,
        number: int = 1,
        buffers: dict[str, Tensor] | None = None,
    ) -> Any:
        """The model's result on a batch with other weights.

        Args:
            weights: θ by canonical name, masked here, so that nothing flows back to a masked
                weight; those that are missing are the model's own.
            batch: From `prepared`.
            number: Of the batch, for errors.
            buffers: Read and updated in place of copies of the model's own.

        Raises:
            DataError: If the model cannot run on the batch.
        """
        given = {**self.weights, **weights}
        values = {name: self.masked(name, theta) for name, theta in given.items()}
        state = {**self.parameters, **(copied(self.buffers) if buffers is None else buffers)}
        state |= {parameter: values.pop(name) for name, parameter in self.stored.items()}
        with _computed(self.model, values):
            try:
                return functional_call(self.model, state, batch.args, batch.kwargs)
            except PxfastError:
                raise
            except Exception as error:
                raise cannot_run(self.model, batch, number, error) from error

    def outputs(self, weights: Values, batch: Batch, *rest: Any) -> Tensor:
        """All floating outputs that count, side by side: [N, outputs of a sample]."""
        leaves = self._floating(self(weights, batch, *rest))
        for leaf in leaves:
            if leaf.dim() == 0 or leaf.shape[0] != batch.size:
                raise DataError(
                    f"the model's output has shape {list(leaf.shape)} for {batch.size} samples; "
                    f"expected the samples first. Select another output with output="
                )
        return torch.cat(
            [leaf.flatten(1) if leaf.dim() > 1 else leaf[:, None] for leaf in leaves], 1
        )

    def logits(self, weights: Values, batch: Batch, number: int = 1) -> Tensor:
        """The one floating output that counts, as the model gives it: what a loss takes."""
        leaves = self._floating(self(weights, batch, number))
        if len(leaves) != 1:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
            raise DataError(
                f"the loss needs one output, the model returns {len(leaves)} (of shapes {shapes}): "
                f"select one with output=, a key, an index or a function of the model's result"
            )
        return leaves[0]

    def _floating(self, result: Any) -> list[Tensor]:
        chosen = selected(result, self.output)
        if hasattr(chosen, "to_tuple"):  # transformers' ModelOutput
            chosen = chosen.to_tuple()
        found = [leaf for leaf in tree_leaves(chosen) if _is_floating(leaf)]
        if not found:
            raise DataError(
                f"the model returns no floating-point tensor, got {type(chosen).__name__}. Select "
                f"the right output with output=, a key, an index or a function of its result"
            )
        return found

    def gradients(
        self, value: Tensor, leaves: Values, create_graph: bool = False
    ) -> dict[str, Tensor]:
        """∂value/∂leaf by name, without the leaves that the value does not depend on."""
        if not value.requires_grad:
            return {}
        found = torch.autograd.grad(
            value, list(leaves.values()), create_graph=create_graph, allow_unused=True
        )
        return {
            name: gradient
            for name, gradient in zip(leaves, found, strict=True)
            if gradient is not None
        }

    # ---- data ------------------------------------------------------------------------------------

    def prepared(self, batch: Batch, number: int) -> Batch:
        """A batch on the model's device and in its dtype.

        Raises:
            DataError: If it holds NaN or infinity.
        """
        batch = to_device(batch, self.device)
        check_finite(batch, number)
        return with_inputs(batch, lambda tensor: tensor.detach().to(self.dtype))

    # ---- scores ----------------------------------------------------------------------------------

    def scores(self, values: Values, name: str, **provenance: Any) -> Scores:
        """Scores in parameter order, exactly 0 where masked; weights without a value are left out.

        Args:
            values: Any number per weight, by name; the output does not use the missing ones.
            name: Of the criterion.
            provenance: How the scores were made.
        """
        scored = [weight for weight in self.scored if weight in values]
        unused = [weight for weight in self.scored if weight not in values]
        if not scored:
            raise PxfastError("there are no prunable weights: the output uses none of them")
        if unused:
            warnings.warn(
                f"the output never uses these weights, so they get no scores: {', '.join(unused)}",
                stacklevel=6,
            )
        found = {
            weight: self.masked(weight, values[weight].detach()).to(self.result)
            for weight in scored
        }
        made = {"pxfast": __version__, "criterion": name, **provenance, "unused": unused}
        return Scores(found, made)


@contextlib.contextmanager
def functional(
    model: nn.Module,
    data: Any,
    masks: Values | None,
    include: Choice,
    exclude: Choice,
    output: Select = None,
    *,
    batchnorm: Statistics = "running",
    dtype: torch.dtype | None = None,
) -> Iterator[Functional]:
    """Opens a model as a function of its weights; on leaving, the model is as it was.

    Args:
        model: The model.
        data: What holds random generators that are to be put back.
        masks: 0/1 tensors by name, on top of the model's own masks.
        include: Which weights are scored; see `pxfast.score`.
        exclude: Which are not.
        output: Which output counts.
        batchnorm: "running": evaluation mode; "data": BatchNorm normalises with each batch's
            statistics.
        dtype: Of the computation; by default float32, float64 for float64 models.

    Raises:
        PxfastError: If there is nothing to score or a weight is not finite.
        MaskError: If masks do not fit.
    """
    model = unwrapped(model)
    refuse_scripted(model)
    offloaded = Offloaded(model)
    if offloaded:
        raise PxfastError(
            f"{next(iter(offloaded))} is offloaded by accelerate; of all criteria only px and "
            f"px-joint score such a model, layer by layer. Load it whole for this one"
        )
    result = check_weights(model, offloaded)
    if batchnorm not in ("running", "data"):
        raise PxfastError(f'batchnorm: expected "running" or "data", got {batchnorm!r}')
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with (
        evaluation(model),
        untouched(model),
        preserved_rng(data),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        if batchnorm == "data":
            for module in batchnorms(model):
                module.training = True
        yield _opened(model, masks, include, exclude, output, dtype or result, result, device)


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of a model that keep running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]


def with_inputs(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with a function of each floating tensor in its place."""

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_inference():  # autograd cannot save it
            tensor = tensor.clone()
        return function(tensor) if tensor.is_floating_point() else tensor

    return Batch(*tree_map_only(Tensor, change, (batch.args, batch.kwargs)))


def copied(tensors: Values) -> dict[str, Tensor]:
    """Copies, for a forward that updates them."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Puts back the attributes of every module, among them weights that hooks have set."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)


def _opened(
    model: nn.Module,
    masks: Values | None,
    include: Choice,
    exclude: Choice,
    output: Select,
    dtype: torch.dtype,
    result: torch.dtype,
    device: torch.device,
) -> Functional:
    scored = prunable_weights(model, include, exclude)
    combined = combined_masks(model, masks)

    def own(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
        return tensor.clone() if tensor.is_inference() else tensor

    weights = weight_values(model, dict.fromkeys([*scored, *combined]))
    stored = stored_names(model, weights)
    return Functional(
        model=model,
        weights={name: own(theta) for name, theta in weights.items()},
        masks=combined,
        scored=tuple(scored),
        stored=stored,
        parameters={
            name: own(parameter)
            for name, parameter in model.named_parameters()
            if name not in stored.values()
        },
        buffers={name: own(buffer) for name, buffer in model.named_buffers()},
        dtype=dtype,
        result=result,
        device=device,
        output=output,
    )


@contextlib.contextmanager
def _computed(model: nn.Module, weights: Values) -> Iterator[None]:
    """Puts weights in the place of what parametrizations compute."""
    with contextlib.ExitStack() as stack:
        for name, weight in weights.items():
            module, attribute = find_weight(model, name)
            chain = cast(nn.ModuleDict, module.parametrizations)[attribute]
            hook = chain.register_forward_hook(lambda *_, weight=weight: weight)
            stack.callback(hook.remove)
        yield


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
