"""Criteria to compare with: anything that scores weights, by one small interface.

``criterion=`` of `pxfast.score` and `pxfast.prune` takes a name of `NAMES` or an object: one of the
classes here with its settings, or your own (see `Criterion`).
"""

from __future__ import annotations

from pxfast.criteria.grasp import GraSP
from pxfast.criteria.magnitude import Magnitude
from pxfast.criteria.ntk_sap import NTKSAP
from pxfast.criteria.px import PX, PXJoint
from pxfast.criteria.random import Random
from pxfast.criteria.registry import NAMES, Criterion, get
from pxfast.criteria.snip import SNIP
from pxfast.criteria.synflow import SynFlow
from pxfast.criteria.synflow_l2 import SynFlowL2

__all__ = [
    "NAMES",
    "NTKSAP",
    "PX",
    "SNIP",
    "Criterion",
    "GraSP",
    "Magnitude",
    "PXJoint",
    "Random",
    "SynFlow",
    "SynFlowL2",
    "get",
]
