"""How data reaches the model: loaders, tensors, (x, y) tuples, dictionaries.

A tensor, a tuple or a dictionary is one batch; a list or any other iterable is a sequence of
batches. Inside a batch the inputs come first; labels are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import keystr, tree_leaves, tree_leaves_with_path, tree_map_only
from tqdm import tqdm

from pxfast.errors import DataError

_AS_TENSOR = "; make a tensor of it with torch.as_tensor"
_AS_LOADER = "; make batches of its samples with torch.utils.data.DataLoader"
LABELS = ("labels", "label", "target", "targets", "y")


class Batch(NamedTuple):
    """The arguments of one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def size(self) -> int:
        """Number of samples: the first dimension of the inputs."""
        return inputs(self)[0].shape[0]

    def samples(self, start: int, stop: int) -> Batch:
        """Some of the samples; tensors of another first dimension are passed on whole."""
        size = self.size

        def cut(tensor: Tensor) -> Tensor:
            return tensor[start:stop] if tensor.dim() and tensor.shape[0] == size else tensor

        return Batch(*tree_map_only(Tensor, cut, (self.args, self.kwargs)))

    def split(self, most: int) -> Iterator[Batch]:
        """The fewest parts of at most so many samples, as equal as can be."""
        count = -(-self.size // most)
        for part in range(count):
            yield self.samples(part * self.size // count, (part + 1) * self.size // count)


def inputs(batch: Batch) -> list[Tensor]:
    """The floating-point tensors of a batch, where paths start."""
    return [leaf for leaf in tree_leaves((batch.args, batch.kwargs)) if _floating(leaf)]


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def brings_masks(batch: Batch) -> bool:
    """Whether samples bring tensors that are no inputs: masks of padding, positions, counts. What
    they say of a sample holds in its kernel network, too."""
    leaves = tree_leaves((batch.args, batch.kwargs))
    whole = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not _floating(leaf)]
    return any(leaf.dim() > 0 and leaf.shape[0] == batch.size for leaf in whole)


def changed_masks(number: int) -> DataError:
    """The error for a batch with such tensors after a first one without."""
    return DataError(
        f"data: batch {number} holds a tensor of integers or booleans with an entry for every "
        "sample (a mask, positions), and the first batch holds none; give every batch one, or "
        "none. What is the same for all samples belongs in a buffer of the model, where a batch of "
        "just as many samples cannot be mistaken for its own"
    )


def batches(data: Any) -> Iterator[Batch]:
    """The batches of anything that `pxfast.score` takes as data.

    Raises:
        DataError: no batches, a batch without floating-point tensors, an empty batch.
    """
    count = 0
    for count, item in enumerate(_sequence(data), start=1):
        batch = _as_batch(item)
        tensors = inputs(batch)
        if not tensors:
            raise DataError(
                f"data: batch {count} holds no floating-point tensor; expected images (or other "
                f"real-valued inputs) first, got {_contents(item)}. Convert them to what the model "
                "takes, such as images.float() / 255"
            )
        if odd := [x for x in tensors if x.is_meta or x.layout is not torch.strided]:
            what = "on the meta device, without values" if odd[0].is_meta else str(odd[0].layout)
            raise DataError(
                f"data: batch {count} holds an input of shape {list(odd[0].shape)} that is {what}; "
                "expected dense tensors with values. Make it one, as .to_dense() does of a sparse "
                "tensor"
            )
        if tensors[0].dim() == 0 or tensors[0].shape[0] == 0:
            raise DataError(
                f"data: batch {count} is empty (its first input has shape {list(tensors[0].shape)})"
            )
        yield batch
    if count == 0:
        raise DataError("data: there are no batches in it; expected at least one")


def _contents(item: Any) -> str:
    """The tensors of a batch and their dtypes, for error messages."""
    if isinstance(item, Mapping):
        entries = ", ".join(f"{key}: {_contents(x)}" for key, x in item.items())
        return f"a dictionary of {entries}" if entries else "an empty dictionary"
    if isinstance(item, Tensor):
        return f"a tensor of {str(item.dtype).removeprefix('torch.')}"
    return type(item).__name__


def _sequence(data: Any) -> Any:
    if isinstance(data, (Tensor, tuple, Mapping)):
        return [data]
    if isinstance(data, (str, bytes)) or not hasattr(data, "__iter__"):
        raise DataError(
            "data: expected a tensor, an (inputs, labels) tuple, a dictionary or an iterable of "
            f"such batches, got {type(data).__name__}{_AS_LOADER if _indexed(data) else ''}"
        )
    return data


def _indexed(data: Any) -> bool:
    """Whether this is a data set of samples, not of batches."""
    return not isinstance(data, (str, bytes, type)) and hasattr(data, "__getitem__")


def _as_batch(item: Any) -> Batch:
    if isinstance(item, Tensor):
        return Batch((item,), {})
    if isinstance(item, Mapping):
        return Batch((), {str(key): value for key, value in item.items() if key not in LABELS})
    if isinstance(item, (tuple, list)) and item:
        first = item[0]
        if isinstance(first, Mapping):
            return _as_batch(first)
        return Batch(tuple(first) if isinstance(first, (tuple, list)) else (first,), {})
    raise DataError(
        f"data: a batch must be a tensor, an (inputs, labels) pair or a dictionary, got "
        f"{type(item).__name__}{_AS_TENSOR if hasattr(item, '__array__') else ''}"
    )


def check_finite(batch: Batch, number: int) -> None:
    """Refuse NaN and infinity, naming the batch, the input and the first sample that has them."""
    for path, tensor in tree_leaves_with_path((batch.args, batch.kwargs)):
        if not _floating(tensor) or is_finite(tensor):
            continue
        bad = ~torch.isfinite(tensor)
        place = bad.nonzero()[0].tolist()
        sample = f" (sample {place[0]})" if place and tensor.shape[0] == batch.size else ""
        raise DataError(
            f"data: batch {number} holds NaN or infinity in {_input_name(path)}: {int(bad.sum())} "
            f"of {tensor.numel()} entries, the first of them {float(tensor[tuple(place)])} at "
            f"{place}{sample}, counted from 0. Mend the data, or leave such samples out"
        )


def _input_name(path: tuple[Any, ...]) -> str:
    """Where a tensor stands among the arguments of the model's forward."""
    group, first, *rest = path
    name = f"input {first.idx}" if group.idx == 0 else f"input {first.key!r}"
    return name + keystr(tuple(rest))


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds no NaN or infinity: one read, unless its sum overflows."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    tensor = tensor.detach()
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to the model's device (asynchronously where the loader has pinned it)."""
    return Batch(
        *tree_map_only(
            Tensor,
            lambda t: t.to(device, non_blocking=True),
            (batch.args, batch.kwargs),
        )
    )


def cannot_run(model: nn.Module, batch: Batch, number: int, error: Exception) -> DataError:
    """The error for a batch that the model's forward refuses, or that a pass over it does."""
    shapes = [str(list(x.shape)) for x in tree_leaves(batch.args) if _floating(x)]
    shapes += [f"{key}: {list(x.shape)}" for key, x in batch.kwargs.items() if _floating(x)]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # stay as they are
    try:
        with torch.no_grad():
            functional_call(model, buffers, batch.args, batch.kwargs)
    except Exception:
        advice = (
            "The model raises this without pxfast, too: give it the inputs that its forward takes, "
            "the first dimension counting the samples"
        )
    else:
        advice = "The model alone runs on them, so pxfast cannot follow what its forward does here"
    return DataError(
        f"{type(model).__name__} could not be scored on batch {number} (inputs of shape "
        f"{', '.join(shapes)}): {type(error).__name__}: {str(error).rstrip('.')}. {advice}."
    )


def peeked(stream: Iterator[Batch]) -> tuple[Batch, Iterator[Batch]]:
    """The first batch, and all of them."""
    first = next(stream)
    return first, itertools.chain([first], stream)


def progress_bar(data: Any, what: str, progress: bool | None) -> Any:
    """The data under a progress bar, if it is a sequence of batches."""
    if isinstance(data, (Tensor, tuple, Mapping, str, bytes)) or not hasattr(data, "__iter__"):
        return data
    quiet = None if progress is None else not progress  # None: quiet unless on a terminal
    return tqdm(data, desc=what, unit="batch", leave=False, disable=quiet)
