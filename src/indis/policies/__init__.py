"""Policies: what turns (x_T, c) into a discretization."""

from indis.policies.instance import Instance
from indis.policies.policy import Fixed, Global, LogitPolicy, PerSample, Policy

__all__ = ["Fixed", "Global", "Instance", "LogitPolicy", "PerSample", "Policy"]
