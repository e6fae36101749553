"""Policies: what turns (x_T, c) into a discretization."""

from indis.policies.instance import Instance
from indis.policies.midpoint import MidpointBounds, MidpointTable
from indis.policies.policy import Attentive, Fixed, Global, LogitPolicy, PerSample, Policy
from indis.policies.predictor import MidpointPredictor

__all__ = [
    "POLICIES",
    "Attentive",
    "Fixed",
    "Global",
    "Instance",
    "LogitPolicy",
    "MidpointBounds",
    "MidpointTable",
    "PerSample",
    "Policy",
    "MidpointPredictor",
]

# What stored names may become.
POLICIES: dict[str, type[Policy]] = {
    c.__name__: c for c in (Fixed, Global, PerSample, Instance, MidpointTable, MidpointPredictor)
}
