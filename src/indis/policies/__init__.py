"""Policies: what turns (x_T, c) into a discretization."""

from indis.policies.closed import ClosedLoop
from indis.policies.instance import Instance
from indis.policies.one_shot import OneShot
from indis.policies.policy import Fixed, Global, LogitPolicy, PerSample, Policy

__all__ = ["POLICIES", "ClosedLoop", "Fixed", "Global", "Instance", "LogitPolicy", "OneShot", "PerSample", "Policy"]

# What stored names may become.
STORED = (Fixed, Global, PerSample, Instance, ClosedLoop, OneShot)
POLICIES: dict[str, type[Policy]] = {c.__name__: c for c in STORED}
