"""What code asks of a tensor besides its entries: shape, dtype, device. And what it may not ask in
a shape-only pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pxfast.errors import NoRuleError
from pxfast.paths.network import NeedsValuesError, Network
from pxfast.paths.registry import rule, spellings

_PROPERTIES = [
    "shape", "dtype", "layout", "ndim", "requires_grad", "grad", "grad_fn", "is_leaf", "is_sparse",
    "is_quantized",
    "is_meta", "is_mkldnn", "is_nested", "names", "itemsize", "nbytes", "_version",
]  # fmt: skip
_METHODS = [
    "size", "dim", "numel", "nelement", "stride", "storage_offset", "is_contiguous",
    "is_floating_point",
    "is_complex", "element_size", "ndimension", "__len__", "is_conj", "is_neg", "is_signed",
    "is_inference",
    "__hash__",
]  # fmt: skip


@rule(
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES if hasattr(Tensor, name)),
    *(getattr(Tensor, name) for name in _METHODS),
    torch.is_floating_point, torch.numel, torch.is_complex, torch.is_tensor,
    metadata=True,
)  # fmt: skip
def metadata(network: Network, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The value's own answer. Scoring always looks like inference: nothing requires grad."""
    return func(x.value if x.unfinished is None else x, *args, **kwargs)


@rule(Tensor.device.__get__, metadata=True)
def device(network: Network, func: Any, x: Any) -> torch.device:
    """The device of the pass, also while values are on the meta device."""
    return network.device


@rule(
    *(getattr(Tensor, f"is_{kind}").__get__ for kind in ("cpu", "cuda", "mps", "xpu")),
    metadata=True,
)
def is_device(network: Network, func: Any, x: Any) -> bool:
    """Whether the pass runs on that kind of device."""
    return network.device.type == func.__self__.__name__.removeprefix("is_")


@rule(Tensor.get_device, metadata=True)
def get_device(network: Network, func: Any, x: Any) -> int:
    """Device index, -1 on the CPU, as torch has it."""
    return -1 if network.device.type == "cpu" else (network.device.index or 0)


@rule(Tensor.__repr__, Tensor.__format__, metadata=True)
def as_text(network: Network, func: Any, x: Any, *args: Any, **kwargs: Any) -> str:
    """What print shows."""
    return repr(x)


@rule(
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
    Tensor.__index__,
    Tensor.__array__, Tensor.__contains__, Tensor.is_nonzero, torch.is_nonzero, torch.equal,
    Tensor.equal,
    torch.allclose, Tensor.allclose,
)  # fmt: skip
def to_python(network: Network, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Python control flow on values: answered from the true network, at this sample."""
    if not network.values:
        raise NeedsValuesError
    return network.value(func, *args, **kwargs)


@rule(
    Tensor.argmax, torch.argmax, Tensor.argmin, torch.argmin, Tensor.eq, torch.eq, Tensor.ne,
    torch.ne, Tensor.lt,
    torch.lt, Tensor.le, torch.le, Tensor.gt, torch.gt, Tensor.ge, torch.ge, torch.isnan,
    Tensor.isnan,
    torch.isinf, Tensor.isinf, torch.isfinite, Tensor.isfinite, torch.all, Tensor.all, torch.any,
    Tensor.any,
    torch.sign, Tensor.sign, Tensor.__and__, Tensor.__or__, Tensor.__xor__, Tensor.__invert__,
    *(getattr(Tensor, f"__{name}__") for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    *spellings("logical_and", "logical_or", "logical_xor", "logical_not"), Tensor.bool, Tensor.int,
    Tensor.long,
)  # fmt: skip
def without_path(network: Network, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Piecewise constant in its input: a value that carries no path."""
    return network.tensor(network.value(func, *args, **kwargs), None)


@rule(
    torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like,
    torch.randn_like,
    Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty, Tensor.new_tensor,
)  # fmt: skip
def new_tensor(network: Network, func: Any, *args: Any, **kwargs: Any) -> Any:
    """No function of its input: it has only its shape, dtype or device. So its values are there in
    a pass on shapes alone, too."""
    where = {} if network.values else {"device": network.device}
    result = network.tensor(network.value(func, *args, **kwargs | where), None)
    result.constant = True
    return result


@rule(Tensor.register_hook, Tensor.backward, Tensor.retain_grad)
def gradients(network: Network, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A forward that differentiates inside cannot be scored."""
    raise NoRuleError(
        f"Tensor.{func.__name__} was called while scoring ({network.weights.where()}). Scoring "
        "runs the model's forward without gradients; leave gradients to training code outside "
        "forward."
    )
