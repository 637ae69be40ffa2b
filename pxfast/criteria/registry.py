"""Criteria by name, and how one is called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from pxfast.criteria.grasp import GraSP
from pxfast.criteria.magnitude import Magnitude
from pxfast.criteria.ntk_sap import NTKSAP
from pxfast.criteria.px import PX, PXJoint
from pxfast.criteria.random import Random
from pxfast.criteria.snip import SNIP
from pxfast.criteria.synflow import SynFlow
from pxfast.criteria.synflow_l2 import SynFlowL2
from pxfast.errors import PxfastError
from pxfast.selection.scores import Scores
from pxfast.suggest import did_you_mean

_CRITERIA = {
    criterion.name: criterion
    for criterion in (PX, PXJoint, SNIP, GraSP, SynFlow, SynFlowL2, NTKSAP, Magnitude, Random)
}
NAMES = tuple(_CRITERIA)


class Criterion(Protocol):
    """Anything that scores weights: what ``criterion=`` takes beside a name.

    Those of pxfast also have a ``name`` and ``rounds``, the number of rounds that their papers use.
    """

    def score(
        self, model: nn.Module, data: Any, *, masks: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Scores every prunable weight of a model, the higher the more it is worth keeping.

        Args:
            model: The model, to be left as it is.
            data: What `pxfast.score` or `pxfast.prune` was given.
            masks: 0/1 masks by name, on top of the model's own; empty if there are none. A masked
                weight scores 0. A method may take more: the options of `pxfast.score` that it
                names reach it, others are refused.

        Returns:
            `pxfast.Scores` or finite floating tensors by weight name, in parameter order; the same
            names for any masks.
        """
        ...


def get(name: str) -> Any:
    """Returns the criterion of a name, with its default settings.

    Raises:
        PxfastError: If there is none of that name.
    """
    if name not in _CRITERIA:
        raise PxfastError(
            f"criterion: expected one of {', '.join(NAMES)}, got {name!r}"
            f"{did_you_mean(name, NAMES)}"
        )
    return _CRITERIA[name]()


def score_by(
    criterion: str | Criterion,
    model: nn.Module,
    data: Any,
    *,
    masks: Mapping[str, Tensor] | None,
    progress: bool | None,
    **options: Any,
) -> Scores:
    """Scores a model by any criterion, which gets the options that it takes.

    Args:
        criterion: A name or an object.
        model: The model.
        data: The data.
        masks: 0/1 masks by name.
        progress: Whether to show a progress bar; for criteria that have one.
        options: The other options of `pxfast.score`; those left at their defaults do not count.

    Raises:
        TypeError: If the object has no method ``score``.
        ValueError: If the criterion does not take an option that is set.
    """
    chosen = get(criterion) if isinstance(criterion, str) else criterion
    if isinstance(chosen, type):
        raise TypeError(
            f"criterion must be a name or an object, got the class {chosen.__name__}: give "
            f"{chosen.__name__}()"
        )
    if not callable(getattr(chosen, "score", None)):
        raise TypeError(
            f"criterion must be a name or an object with score(model, data, *, masks), "
            f"got {criterion!r}"
        )
    parameters = inspect.signature(chosen.score).parameters
    any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    given = {name: value for name, value in options.items() if value not in (None, "running")}
    if refused := [name for name in given if not (any_name or name in parameters)]:
        who = getattr(chosen, "name", type(chosen).__name__)
        raise ValueError(
            f"{', '.join(refused)}: options of pxfast's own criteria that {who} does not take. "
            f"docs/criteria.md lists the settings of its object"
        )
    if progress is not None and (any_name or "progress" in parameters):
        given["progress"] = progress
    scores = chosen.score(model, data, masks={} if masks is None else masks, **given)
    return scores if isinstance(scores, Scores) else Scores(scores)
