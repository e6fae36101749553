"""Policies: what turns (x_T, c) into a discretization."""

from indis.policies.any_steps import AnySteps
from indis.policies.base import Fixed, Global, LogitPolicy, PerSample, Policy
from indis.policies.closed import ClosedLoop
from indis.policies.instance import Instance
from indis.policies.local import LocalLoop
from indis.policies.midpoint import MidpointBounds, MidpointTable
from indis.policies.one_shot import OneShot
from indis.policies.predictor import MidpointPredictor

__all__ = [
    "POLICIES",
    "AnySteps",
    "ClosedLoop",
    "Fixed",
    "Global",
    "Instance",
    "LocalLoop",
    "LogitPolicy",
    "MidpointBounds",
    "MidpointPredictor",
    "MidpointTable",
    "OneShot",
    "PerSample",
    "Policy",
]

# What stored names may become.
STORED = (
    Fixed,
    Global,
    PerSample,
    Instance,
    ClosedLoop,
    LocalLoop,
    OneShot,
    AnySteps,
    MidpointTable,
    MidpointPredictor,
)
POLICIES: dict[str, type[Policy]] = {c.__name__: c for c in STORED}
