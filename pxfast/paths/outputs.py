"""The outputs that paths end in: all floating-point outputs, `logits` alone if present, or what
`output=` selects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._pytree import tree_leaves

from pxfast.errors import DataError, RangeError
from pxfast.paths.pathsum import PathSum
from pxfast.paths.tensor import PathTensor

Select = Callable[[Any], Any] | str | int | None


def output_paths(
    result: Any, samples: int, select: Select
) -> list[tuple[PathSum, tuple[int, ...]]]:
    """Path sums of the outputs, each with its full shape [N, …]. A softmax over classes is left
    off: paths end in its logits.

    Raises:
        DataError: no output depends on the input, or one lacks the dimension of samples.
        RangeError: an output is NaN, so gates on the way mean nothing.
    """
    leaves = [leaf for leaf in _leaves(selected(result, select)) if isinstance(leaf, PathTensor)]
    ends = []
    for leaf in leaves:
        leaf.check_fresh()
        if not leaf.value.is_floating_point() or (leaf.path is None and leaf.logits is None):
            continue
        path, shape = leaf.logits or (leaf.path, leaf.value.shape)
        if not shape or shape[0] != samples:
            raise DataError(
                f"the model's output has shape {list(shape)} for {samples} samples; expected the "
                "samples first. Select another output with output=, a key, an index or a function "
                "of the model's result."
            )
        if not leaf.value.is_meta and bool(leaf.value.isnan().any()):
            raise RangeError(
                f"the model's own output holds NaN, because its values left the range of "
                f"{leaf.value.dtype} on the way, so its gates mean nothing. Rescale the network, "
                "or score it in float64 (model.double())."
            )
        ends.append((path, tuple(shape)))
    if not ends:
        ended = [leaf.ended for leaf in leaves if leaf.ended is not None]
        none = "no path reaches it" if leaves else f"it is {_kind(result)}"
        why = f"{ended[0]} makes a gate tensor of it" if ended else none
        advice = f" {ended[0].advice}" if ended else ""
        raise DataError(
            f"the model's output does not depend on its input ({why}). Select the right output "
            f"with output=, a key, an index or a function of the model's result.{advice}"
        )
    return ends


def selected(result: Any, select: Select) -> Any:
    """What `output=` picks from the model's result."""
    if select is None:
        if isinstance(result, dict) and "logits" in result:
            return result["logits"]
        return getattr(result, "logits", result) if not isinstance(result, PathTensor) else result
    if callable(select):
        return select(result)
    try:
        return (
            getattr(result, select)
            if isinstance(select, str) and hasattr(result, select)
            else result[select]
        )
    except (KeyError, IndexError, TypeError) as error:
        kind = f"keys {list(result)}" if isinstance(result, dict) else type(result).__name__
        raise DataError(
            f"output={select!r} selects nothing from the model's result ({kind})"
        ) from error


def _kind(result: Any) -> str:
    """What a result without path tensors is, for an error message."""
    inside = sorted({type(leaf).__name__ for leaf in _leaves(result)} - {type(result).__name__})
    return f"a {type(result).__name__}{' of ' + ', '.join(inside) if inside else ''}"


def _leaves(result: Any) -> list[Any]:
    if hasattr(result, "to_tuple"):  # transformers' ModelOutput
        result = result.to_tuple()
    return tree_leaves(result)
