"""The random number generators that a forward and a data loader draw from, saved and restored."""

from __future__ import annotations

import base64
import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pxfast.errors import DataError

_PARTS = ("dataset", "sampler", "batch_sampler", "transform", "transforms")
_OWN = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


@dataclass(frozen=True)
class RngState:
    """States of torch's CPU and CUDA generators, numpy's, Python's, and those of a data loader.

    Attributes:
        torch: State of torch's CPU generator.
        cuda: State per CUDA device; empty before CUDA is first used.
        numpy: State of numpy's global generator.
        python: State of Python's `random`.
        own: States of the generators that the data hold, in the order of `own_generators`.
    """

    torch: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any
    own: list[Any]

    @classmethod
    def capture(cls, data: Any = None) -> RngState:
        """Reads all states; the generators go on as if nothing had happened."""
        return cls(
            torch=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            numpy=np.random.get_state(legacy=False),
            python=random.getstate(),
            own=[_get(generator) for generator in own_generators(data)],
        )

    def restore(self, data: Any = None) -> None:
        """Sets all states.

        Args:
            data: What `capture` was given, or data built in the same way.

        Raises:
            DataError: If the data hold another number of generators.
        """
        generators = own_generators(data)
        if len(generators) != len(self.own):
            raise DataError(
                f"the data hold {len(generators)} random generators of their own, the saved state "
                f"is of data with {len(self.own)}: these are other data"
            )
        torch.set_rng_state(self.torch)
        for device, state in enumerate(self.cuda[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
        for generator, state in zip(generators, self.own, strict=True):
            _set(generator, state)

    def to_json(self) -> dict[str, Any]:
        """Returns the states as values that JSON can hold."""
        return {name: _encode(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RngState:
        """Reverses `to_json`."""
        return cls(**{name: _decode(value) for name, value in values.items()})


@contextlib.contextmanager
def preserved_rng(data: Any = None) -> Iterator[None]:
    """Puts every random number generator back where it was, whatever happens inside.

    Args:
        data: A data loader or anything else whose own generators are to be preserved too.
            Workers of a DataLoader are seeded from them anew at each iteration; those of one with
            persistent_workers=True are not, and keep drawing.
    """
    state = RngState.capture(data)
    try:
        yield
    finally:
        state.restore(data)


def own_generators(data: Any) -> list[Any]:
    """Finds the generators that data hold as attributes.

    Looks at the object, its dataset, samplers and transforms, and theirs in turn.

    Args:
        data: A data loader, a data set, or anything else.

    Returns:
        Generators of torch, numpy and Python, each once, in a fixed order.
    """
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = [data]
    while waiting:
        part = waiting.pop(0)
        if id(part) in seen or not hasattr(part, "__dict__") or isinstance(part, type):
            continue
        seen.add(id(part))
        for value in vars(part).values():
            if isinstance(value, _OWN) and not isinstance(value, random.SystemRandom):
                found.setdefault(id(value), value)
        waiting.extend(vars(part)[name] for name in _PARTS if name in vars(part))
    return list(found.values())


def _get(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def _set(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"bytes": base64.b64encode(value.numpy().tobytes()).decode()}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, dict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_encode(item) for item in value]}
    return value.item() if isinstance(value, np.generic) else value


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "bytes" in value:
        return torch.frombuffer(bytearray(base64.b64decode(value["bytes"])), dtype=torch.uint8)
    if "array" in value:
        return np.array(value["array"], dtype=value["dtype"])
    if "dict" in value:
        return {key: _decode(item) for key, item in value["dict"].items()}
    kind, items = next(iter(value.items()))
    return [_decode(item) for item in items] if kind == "list" else tuple(map(_decode, items))
