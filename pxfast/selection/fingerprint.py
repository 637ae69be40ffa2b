"""Short names for a model's numbers and for data, to tell them apart again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from pxfast.errors import DataError
from pxfast.offload import Offloaded
from pxfast.unwrap import unwrapped


def model_fingerprint(model: nn.Module) -> str:
    """Hashes all that a model's state_dict holds: names, dtypes, shapes and every byte.

    Every byte is copied to the CPU and read once, by BLAKE2b on one core. The device, offloading
    and a wrapper such as DDP make no difference.

    Args:
        model: Any model.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    model = unwrapped(model)
    offloaded = Offloaded(model)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        _update(digest, offloaded.load(name) if name in offloaded else value)
    return digest.hexdigest()


def data_fingerprint(data: Any) -> str:
    """Hashes the first batch of data, and how many batches and samples it says it has.

    Reads one batch, which may draw random numbers: wrap in `preserved_rng`.

    Args:
        data: What `pxfast.score` takes: a tensor or a tuple or dictionary of tensors is one batch,
            anything else is iterated.

    Returns:
        32 hexadecimal digits.

    Raises:
        DataError: If the data are none of these.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(data, (Tensor, tuple, Mapping)):
        _update(digest, data)
    else:
        if not isinstance(data, Iterable):
            raise DataError(
                f"data must be a tensor, a tuple or dictionary of tensors or an iterable of such "
                f"batches, got {type(data).__name__}"
            )
        _update(digest, next(iter(data), None))
        for sized in (data, getattr(data, "dataset", None)):
            digest.update(f"|{_length(sized)}".encode())
    return digest.hexdigest()


def masks_fingerprint(masks: Mapping[str, Tensor]) -> str:
    """Hashes masks by name."""
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, masks)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Feeds a nest of tensors and plain values to a hash."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{list(value.shape)}".encode())
        if value.layout == torch.strided and not (value.is_meta or value.is_quantized):
            flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(f"{key!r}:".encode())
            _update(digest, item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        digest.update(f"{len(value)}[".encode())
        for item in value:
            _update(digest, item)
    elif value is None or isinstance(value, (str, bytes, bool, int, float)):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__qualname__.encode())


def _length(value: Any) -> int | None:
    """Returns len(value) where it has one: an IterableDataset's loader may say it has and raise."""
    try:
        return len(value) if isinstance(value, Sized) else None
    except TypeError:
        return None
