"""Batches with their labels, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pxfast.batches import LABELS, Batch, batches
from pxfast.criteria.functional import Functional, Values
from pxfast.errors import DataError

Loss = Callable[[Tensor, Tensor], Tensor]


def labelled(data: Any, criterion: str) -> Iterator[tuple[Batch, Tensor]]:
    """The batches of data, as `pxfast.batches.batches` reads them, each with its labels.

    Args:
        data: ``(inputs, labels)``, dictionaries that hold labels, or a sequence of such batches.
        criterion: Its name, for errors.

    Raises:
        DataError: If a batch has no labels, or what `batches` raises.
    """
    labels: list[Tensor] = []

    def tapped(items: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(items, start=1):
            found = _labels(item)
            if found is None:
                raise DataError(
                    f"{criterion} needs labels, but batch {number} of the data has none: it is a "
                    f"{type(item).__name__}. Give (inputs, labels), or a dictionary with one of "
                    f"{', '.join(LABELS)}"
                )
            labels.append(found)
            yield item

    if isinstance(data, (Tensor, tuple, Mapping)):
        data = [data]
    readable = hasattr(data, "__iter__") and not isinstance(data, (str, bytes))
    for batch in batches(tapped(data) if readable else data):
        yield batch, labels.pop()


def mean_loss(
    network: Functional,
    loss: Loss,
    weights: Values,
    batch: Batch,
    labels: Tensor,
    *,
    number: int,
    temperature: float = 1.0,
) -> Tensor:
    """The loss of a batch, averaged over its samples, of the logits over a temperature.

    Raises:
        DataError: If the loss fails or is not one number.
    """
    logits = network.logits(weights, batch, number)
    labels = labels.to(network.device)
    if labels.is_inference():  # autograd cannot save it
        labels = labels.clone()
    what = (
        f"the loss of batch {number} (outputs of shape {list(logits.shape)}, labels {labels.dtype} "
        f"of shape {list(labels.shape)})"
    )
    try:
        value = loss(logits / temperature, labels)
    except Exception as error:
        raise DataError(f"{what} could not be computed: {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"{what} must be one number, the mean over the samples, got {got}")
    return value.squeeze()


def add_(total: dict[str, Tensor], gradients: Values) -> None:
    """Adds to the sums by name."""
    for name, gradient in gradients.items():
        total[name] = total[name] + gradient if name in total else gradient


def _labels(item: Any) -> Tensor | None:
    """The labels of a batch, or None."""
    if isinstance(item, (tuple, list)):
        if len(item) > 1:
            return item[1] if isinstance(item[1], Tensor) else None
        item = item[0] if item else None
    if isinstance(item, Mapping):
        found = [item[key] for key in LABELS if isinstance(item.get(key), Tensor)]
        return found[0] if found else None
    return None
