"""Tensors and JSON in one safetensors file that is always whole.

The file is written beside its place, flushed to the disk and renamed, so that a kill or a full disk
leaves the old file or the new one. A digest over everything finds damage that a safetensors reader
does not see. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pxfast._version import __version__
from pxfast.errors import FileFormatError

FORMAT_VERSION = 1


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], content: dict[str, Any]
) -> None:
    """Writes tensors and a JSON object as one safetensors file, atomically.

    Args:
        path: Where to. Its folder must exist.
        kind: What the file holds, such as "pxfast.masks"; `read_tensors` asks for it.
        tensors: What to store, from any device.
        content: What JSON can hold; it goes into the metadata.

    Raises:
        OSError: If the file cannot be written; a file that was there before is unchanged.
        TypeError: If JSON cannot hold the content.
    """
    stored = {name: _own_copy(tensor) for name, tensor in tensors.items()}
    text = json.dumps(content, sort_keys=False)
    metadata = {
        "format": kind,
        "format_version": str(FORMAT_VERSION),
        "pxfast": __version__,
        "content": text,
        "digest": _digest(stored, text),
    }
    write_atomically(path, safetensors.torch.save(stored, metadata))


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict]:
    """Reads what `write_tensors` wrote.

    Returns:
        The tensors, on the CPU, and the JSON object.

    Raises:
        FileFormatError: If the file is damaged, truncated, of another kind or of a newer version.
        OSError: If it cannot be read.
    """
    # One open: safetensors.safe_open opens twice and can mix two versions of a file that is being
    # replaced.
    data = Path(path).read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        metadata = _metadata(data)
    except (safetensors.SafetensorError, UnicodeDecodeError) as error:
        raise FileFormatError(
            f"{path} is not a whole safetensors file ({error}): it is truncated, damaged or of "
            f"another kind. Make it again or restore a copy"
        ) from error
    _check_kind(path, metadata, kind)
    text = metadata.get("content", "")
    if metadata.get("digest") != _digest(tensors, text):
        raise FileFormatError(
            f"{path} is damaged: its bytes do not match its digest. Make it again or restore a copy"
        )
    return tensors, json.loads(text)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes bytes to a file so that it is, at any moment, whole or as it was before.

    Raises:
        OSError: If the bytes cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give a file's path")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {target.parent}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def pack_masks(masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Packs bool masks to one bit a weight.

    Returns:
        uint8 tensors [ceil(weights / 8)] by name, the first weight in the lowest bit, and the
        masks' shapes by name in their order.
    """
    packed = {
        name: torch.from_numpy(
            np.packbits(mask.cpu().contiguous().view(-1).numpy(), bitorder="little")
        )
        for name, mask in masks.items()
    }
    return packed, {name: list(mask.shape) for name, mask in masks.items()}


def unpack_masks(
    path: str | os.PathLike[str], packed: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Reverses `pack_masks`.

    Raises:
        FileFormatError: If names, shapes and bits do not belong together.
    """
    if not isinstance(shapes, Mapping) or set(packed) != set(shapes):
        raise FileFormatError(f"{path}: the list of shapes does not match the stored masks")
    masks = {}
    for name, shape in shapes.items():
        bits, count = packed[name], int(np.prod(shape, dtype=np.int64))
        if bits.dtype != torch.uint8 or list(bits.shape) != [(count + 7) // 8]:
            raise FileFormatError(
                f"{path}: '{name}' of shape {list(shape)} needs {(count + 7) // 8} bytes of bits, "
                f"got {bits.dtype} {list(bits.shape)}"
            )
        flat = np.unpackbits(bits.numpy(), count=count, bitorder="little")
        masks[name] = torch.from_numpy(flat.astype(bool)).view(list(shape))
    return masks


def _own_copy(tensor: Tensor) -> Tensor:
    """Returns a contiguous CPU copy that shares no memory: safetensors refuses shared memory."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Hashes names, dtypes, shapes and bytes of the tensors and the JSON text."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    """Returns the metadata of a safetensors file that safetensors has found to be valid."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def _check_kind(path: str | os.PathLike[str], metadata: Mapping[str, str], kind: str) -> None:
    """Raises a FileFormatError unless the metadata are of this kind and a known version."""
    found = metadata.get("format")
    if found != kind:
        raise FileFormatError(
            f"{path} holds {found or 'tensors of another program'}, expected a {kind} file"
        )
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise FileFormatError(
            f"{path} has format version {version or 'unknown'}, this pxfast reads version "
            f"{FORMAT_VERSION}: use the pxfast that wrote it, or a newer one"
        )


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power failure, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
