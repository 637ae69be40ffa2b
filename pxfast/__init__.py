"""pxfast: Path eXclusion scores and pruning masks, fast and exact.

scores = pxfast.score(model, data)                # S/R per weight
masks = scores.masks(density=0.02)                # one shot
masks = pxfast.prune(model, data, density=0.02)   # 100 rounds, as the paper does
"""

from pxfast import criteria, errors, integrations, models, ops, patterns, report
from pxfast._version import __version__
from pxfast.bound import ntk_trace_bound
from pxfast.data import balanced_subset
from pxfast.paths.registry import rule
from pxfast.paths.rules.declared import as_gate
from pxfast.pruning import prune
from pxfast.scoring import score
from pxfast.selection.bake import bake
from pxfast.selection.masks import Masks
from pxfast.selection.scores import Scores

__all__ = [
    "Masks",
    "Scores",
    "__version__",
    "as_gate",
    "bake",
    "balanced_subset",
    "criteria",
    "errors",
    "integrations",
    "models",
    "ntk_trace_bound",
    "ops",
    "patterns",
    "prune",
    "report",
    "rule",
    "score",
]
