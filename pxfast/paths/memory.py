"""Passes within a given amount of memory.

What a sample takes is not estimated but counted while the first one runs, as part of the pass: no
work is done twice. From then on as many samples run at a time as fit.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pxfast.errors import PxfastError

# The share of a limit that is planned with: allocators keep some of what they were given back.
# glibc's held 1.7 times what was in use in a convolutional network, 1.2 times in a transformer.
PLANNED = 0.5

# What lays operands and results out anew while it works, in memory that no tensor shows.
_COPYING = {torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default}


class _Counting:
    """The dispatch, in a class of its own: torch lets a mode's own one enter the compiler, too."""

    counting = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.counting:
            self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        raise NotImplementedError


class Held(_Counting, TorchDispatchMode):  # type: ignore[misc]
    """While active, counts the tensors that torch functions make, until they are freed.

    Attributes:
        bytes: of those that are still there.
        peak: the most that there were at a time; to be set by who wants to know.
        counting: whether what is made now counts.
        limit: bytes beyond which an error says that ``subject`` takes more, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.limit: int | None = None
        self.subject = ""
        self._known: set[int] = set()  # storages, by identity

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor) and not x.is_meta]
        given = {
            id(x.untyped_storage())
            for x in (tree_leaves((args, kwargs)) if made else ())
            if isinstance(x, Tensor)
        }
        for tensor in made:
            storage = tensor.untyped_storage()
            if id(storage) not in self._known and id(storage) not in given:
                self._known.add(id(storage))
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
        working = 0
        if func in _COPYING:
            working = sum(x.nbytes for x in tree_leaves((args, result)) if isinstance(x, Tensor))
        self.peak = max(self.peak, self.bytes + working)
        if self.limit is not None and self.bytes > self.limit:
            raise PxfastError(
                f"max_memory: {self.subject} takes more than the given {self.limit} bytes, scores "
                "included. Give more, or score smaller inputs"
            )

    def _freed(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.bytes -= size


class Budget:
    """How many samples may run at a time.

    Attributes:
        most: that many; 1 until the first has run.
    """

    def __init__(self, memory: int):
        self.memory = memory
        self.most = 1
        self.held = Held()

    @contextlib.contextmanager
    def part(self, samples: int, *, whole: bool = False) -> Iterator[None]:
        """While a part of a batch runs; it is an error if what cannot be cut takes too much."""
        held = self.held
        before = held.peak = held.bytes
        held.limit = self.memory if samples == 1 or whole else None
        held.subject = "one sample" if samples == 1 else f"a batch of {samples} samples that meet"
        with held:
            yield
        each = max(1.0, (held.peak - before) / samples)  # what stays, as scores, may be younger
        self.most = max(1, int((PLANNED * self.memory - held.bytes) / each))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """While something runs that not every pass needs: what it takes is not a sample's."""
        self.held.counting = False
        try:
            yield
        finally:
            self.held.counting = True
