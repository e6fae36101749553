"""Policies: what turns a sample's noise and condition into its plan."""

from indis.policies.base import Fixed, Policy, SharedPolicy, shared_grid
from indis.policies.learned import LearnedPolicy, Reads, Replan
from indis.policies.spatial import Picture

__all__ = [
    "Fixed",
    "LearnedPolicy",
    "Picture",
    "Policy",
    "Reads",
    "Replan",
    "SharedPolicy",
    "shared_grid",
]
