"""The outputs that paths end in: all floating-point outputs, `logits` alone if present, or what
`output=` selects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._pytree import tree_leaves

from pxfast.errors import DataError
from pxfast.paths.pathsum import PathSum
from pxfast.paths.tensor import PathTensor

Select = Callable[[Any], Any] | str | int | None


def output_paths(
    result: Any, samples: int, select: Select
) -> list[tuple[PathSum, tuple[int, ...]]]:
    """Path sums of the outputs, each with its full shape [N, …].

    Raises:
        DataError: no output depends on the input, or one lacks the dimension of samples.
    """
    leaves = [leaf for leaf in _leaves(selected(result, select)) if isinstance(leaf, PathTensor)]
    ends = []
    for leaf in leaves:
        leaf.check_fresh()
        if leaf.path is None or not leaf.value.is_floating_point():
            continue
        shape = tuple(leaf.value.shape)
        if not shape or shape[0] != samples:
            raise DataError(
                f"the model's output has shape {list(shape)} for {samples} samples; expected the "
                "samples first. Select another output with output=, a key, an index or a function "
                "of the model's result."
            )
        ends.append((leaf.path, shape))
    if not ends:
        raise DataError(
            "the model's output does not depend on its input (no path reaches it). Select the "
            "right output with output=, a key, an index or a function of the model's result."
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


def _leaves(result: Any) -> list[Any]:
    if hasattr(result, "to_tuple"):  # transformers' ModelOutput
        result = result.to_tuple()
    return tree_leaves(result)
