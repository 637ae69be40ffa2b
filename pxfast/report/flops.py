"""Floating-point operations of a forward, by the weight that they are done with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pxfast.batches import batches, cannot_run, to_device
from pxfast.paths.names import named_weights
from pxfast.preparation import evaluation
from pxfast.rng import preserved_rng
from pxfast.unwrap import unwrapped


def count_flops(model: nn.Module, data: Any, names: Iterable[str]) -> tuple[dict[str, int], int]:
    """Counts the floating-point operations of one sample's forward.

    By torch.utils.flop_counter: two for every multiplication and addition of a linear layer, a
    convolution or an attention; what else there is counts as nothing.

    Args:
        model: The model, which stays as it is.
        data: As for `pxfast.score`; the first sample is read.
        names: Weights by name.

    Returns:
        The operations done with each weight, masks not looked at, and those of the whole forward.

    Raises:
        DataError: If the model cannot run on the data.
    """
    model = unwrapped(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with preserved_rng(data), evaluation(model), torch.no_grad(), _plain_attention():
        one = to_device(next(batches(data)).samples(0, 1), device)
        counter = FlopCounterMode(display=False)
        with counter, _ByWeight(model, set(names), counter) as found:
            try:
                model(*one.args, **one.kwargs)
            except Exception as error:
                raise cannot_run(model, one, 1, error) from error
    return found.flops, counter.get_total_flops()


class _ByWeight(TorchDispatchMode):
    """Assigns what a counter counts to weights, and to what masks and views make out of them.

    Attributes:
        flops: Counted so far, by the name of the weight.
    """

    def __init__(self, model: nn.Module, names: Set[str], counter: FlopCounterMode) -> None:
        super().__init__()
        self.flops = dict.fromkeys(names, 0)
        self._counter = counter
        self._owners: dict[int, tuple[str, Tensor]] = {}  # by storage, which the tensor keeps alive
        for name, parameter in named_weights(model):
            if name in names:
                self._owners.setdefault(_storage(parameter), (name, parameter))

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs a function and sees whether the counter has moved."""
        before = self._counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        done = self._counter.get_total_flops() - before
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        owners = [self._owners[key] for t in tensors if (key := _storage(t)) in self._owners]
        if not owners:
            return result
        name, weight = owners[0]
        if done:
            self.flops[name] += done
            return result
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.numel() == weight.numel():
                self._owners.setdefault(_storage(made), (name, made))
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in operations that can be counted, not in the one that inference takes."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
