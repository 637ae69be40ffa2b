"""Tensors by the name of their weight: what scores and masks have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class NamedTensors(Mapping[str, Tensor]):
    """Tensors by the name of the weight they belong to, in the model's parameter order.

    Attributes:
        provenance: Where the tensors come from: values that JSON can hold.
    """

    def __init__(
        self, mapping: Mapping[str, Tensor], provenance: Mapping[str, Any] | None = None
    ) -> None:
        if not isinstance(mapping, Mapping):
            raise TypeError(
                f"{type(self).__name__} needs a mapping of weight names to tensors, "
                f"got {type(mapping).__name__}"
            )
        if not mapping:
            raise ValueError(f"{type(self).__name__} needs at least one weight, got none")
        self._tensors = {name: self._checked(name, tensor) for name, tensor in mapping.items()}
        self.provenance: dict[str, Any] = dict(provenance or {})

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        """Returns the tensor as it is kept, or raises an error that names the weight."""
        owner = type(self).__name__
        if not isinstance(name, str):
            raise TypeError(f"{owner}: names must be strings, got {name!r}")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{owner}: '{name}' must be a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise TypeError(
                f"{owner}: '{name}' must be a dense tensor, got {tensor.layout}: use .to_dense()"
            )
        if tensor.is_meta:
            raise TypeError(f"{owner}: '{name}' is on the meta device and has no values")
        return tensor.detach()

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Same names in the same order, same dtypes and values; the device does not matter."""
        if not isinstance(other, type(self)):
            return NotImplemented
        return list(self) == list(other) and all(
            tensor.dtype == other[name].dtype and torch.equal(tensor.cpu(), other[name].cpu())
            for name, tensor in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def total(self) -> int:
        """Number of weights over all layers."""
        return sum(tensor.numel() for tensor in self.values())
