"""Models whose weights are elsewhere between forwards: accelerate's hooks, cpu_offload and
disk_offload, device_map.

Such a weight is an empty parameter on the meta device. A hook puts a temporary parameter in its
place before its module runs, and the empty one after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pxfast.errors import PxfastError
from pxfast.paths.names import named_weights


class Stored(NamedTuple):
    """One offloaded parameter: where the model shows it, and where its values are."""

    module: nn.Module
    attribute: str
    empty: nn.Parameter
    hook: Any  # accelerate.hooks.AlignDevicesHook
    key: str  # in the hook's weights_map


class Offloaded:
    """The offloaded parameters of a model, by the names of its weights.

    Args:
        model: Any model; most have none.

    Raises:
        PxfastError: A parameter is on the meta device and no hook knows its values.
    """

    def __init__(self, model: nn.Module):
        self._stored: dict[str, Stored] = {}
        names = {id(parameter): name for name, parameter in named_weights(model)}
        for prefix, module in model.named_modules():
            for attribute, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    hook, key = _hook(model, prefix, attribute, names[id(parameter)])
                    stored = Stored(module, attribute, parameter, hook, key)
                    self._stored.setdefault(names[id(parameter)], stored)

    def __bool__(self) -> bool:
        return bool(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def name(self, tensor: Tensor) -> str | None:
        """The name of a parameter that a hook has put in place, or None for any other tensor."""
        if not isinstance(tensor, nn.Parameter):
            return None
        for name, stored in self._stored.items():
            if stored.module._parameters[stored.attribute] is tensor:
                return name
        return None

    def load(self, name: str) -> Tensor:
        """The values of a parameter, on the device where its module runs."""
        stored = self._stored[name]
        value = stored.hook.weights_map[stored.key]
        return value.detach().to(device=self.device(name), dtype=stored.empty.dtype)

    def stored(self, name: str) -> tuple[Any, str]:
        """The map that holds a parameter's values, and its key there."""
        stored = self._stored[name]
        return stored.hook.weights_map, stored.key

    def device(self, name: str) -> torch.device:
        """The device where the module of a parameter runs."""
        device = self._stored[name].hook.execution_device
        return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)

    def put_back(self) -> None:
        """Offloads again what an interrupted forward has left loaded, and shows the very parameters
        that the model had before."""
        for stored in self._stored.values():
            shown = stored.module._parameters[stored.attribute]
            if shown is not None and not shown.is_meta:
                _finish(stored)
            stored.module._parameters[stored.attribute] = stored.empty


def main_device(model: nn.Module, offloaded: Offloaded) -> torch.device:
    """The device of a model's inputs: that of its first parameter, when its module runs."""
    for name, parameter in named_weights(model):
        return offloaded.device(name) if name in offloaded else parameter.device
    return torch.device("cpu")


def _hook(model: nn.Module, prefix: str, attribute: str, name: str) -> tuple[Any, str]:
    """The hook that loads a parameter, at its module or at one above, and its key there."""
    owner, key = prefix, attribute
    while True:
        module = model.get_submodule(owner)
        for hook in _hooks(module):
            reaches = owner == prefix or hook.place_submodules
            if hook.offload and hook.weights_map is not None and reaches:
                return hook, key
        if not owner:
            raise PxfastError(
                f"{name} is on the meta device, and no hook of accelerate loads it: give the model "
                f"its weights, or offload it by accelerate.cpu_offload or disk_offload"
            )
        owner, _, last = owner.rpartition(".")
        key = f"{last}.{key}"


def _hooks(module: nn.Module) -> list[Any]:
    """accelerate's hooks of a module that align devices."""
    hook = getattr(module, "_hf_hook", None)
    candidates = getattr(hook, "hooks", (hook,))
    return [each for each in candidates if hasattr(each, "weights_map")]


def _finish(stored: Stored) -> None:
    """Runs what the hook would have run after the module, which also frees shared copies."""
    if stored.hook in _hooks(stored.module):
        stored.hook.post_forward(stored.module, None)
