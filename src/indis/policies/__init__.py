"""Policies: what turns (x_T, c) into a discretization."""

from indis.policies.instance import Instance
from indis.policies.one_shot import OneShot
from indis.policies.policy import Fixed, Global, LogitPolicy, PerSample, Policy

__all__ = ["POLICIES", "Fixed", "Global", "Instance", "LogitPolicy", "OneShot", "PerSample", "Policy"]

# What stored names may become.
POLICIES: dict[str, type[Policy]] = {c.__name__: c for c in (Fixed, Global, PerSample, Instance, OneShot)}
