"""Declares operators: the schema, the fake, and what runs where no kernel was built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pxfast import _native

_library = torch.library.Library("pxfast", "FRAGMENT")
kernels_of: dict[str, tuple[str, ...]] = {}  # of every operator, the devices with kernels for it
references: dict[str, Callable[..., Any]] = {}  # what each computes, in plain PyTorch


def declare(
    schema: str,
    fake: Callable[..., Any],
    reference: Callable[..., Any],
    kernels: tuple[str, ...] = ("cpu", "cuda"),
) -> None:
    """Declare ``torch.ops.pxfast.<name>``, which csrc/binding implements where it has kernels.

    Args:
        schema: name, parameters and results, in torch's notation.
        fake: checks the arguments and returns empty results; torch.compile and meta tensors run it.
        reference: the op in plain PyTorch. On a device without kernels it runs, once `fake` has
            checked the arguments, and says so the first time on a device that `kernels` names.
        kernels: the devices for which the op has kernels; on the others the reference serves best.
    """
    name = schema.partition("(")[0]
    kernels_of[name] = kernels
    references[name] = reference

    def fallback(*args: Any, **kwargs: Any) -> Any:
        fake(*args, **kwargs)
        device = _device_of([*args, *kwargs.values()])
        if device in kernels or device not in ("cpu", "cuda"):
            _native.warn_of_fallback(device)
        return reference(*args, **kwargs)

    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pxfast::{name}", fake, lib=_library)


def _device_of(arguments: list[Any]) -> str:
    """The kind of device that the first tensor is on; a list may hold it."""
    flat = (x for a in arguments for x in (a if isinstance(a, (list, tuple)) else [a]))
    return next(x.device.type for x in flat if isinstance(x, Tensor))
