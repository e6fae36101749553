"""One phi for every N. Beyond the paper.

    noise, condition -> trunk -> h -> head of N -> (3 + order) x N logits

What a sample is, the trunk says once for every N, and it learns at all of them. What N steps make
of it, a head and a table of logits that all samples share, is each N's own: with a common head,
told which step of how many it speaks of, small N learned little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from indis.noise import SCHEDULES, NoiseSchedule
from indis.plan import Bounds, Discretization
from indis.policies.base import Global, Policy
from indis.policies.encoders import Reader
from indis.storage import describe, rebuild


class AnySteps(Policy):
    """A learned policy for each number of steps of ``bases``; :meth:`choose` says which it is at
    the moment.

    Raises:
        ValueError: if there is no base grid, or two have the same number of steps.
    """

    def __init__(
        self,
        bases: Sequence[Tensor],
        schedule: NoiseSchedule,
        bounds: Bounds,
        *,
        shape: tuple[int, ...],
        condition_dim: int = 0,
        width: int = 128,
        depth: int = 3,
        order: int = 0,
    ) -> None:
        super().__init__()
        shared = [Global(base, schedule, bounds, order) for base in bases]
        self.counts = tuple(member.steps for member in shared)
        if not shared or len(set(self.counts)) != len(shared):
            raise ValueError(
                f"bases must be grids of different numbers of steps, got {self.counts}"
            )
        self.shared = nn.ModuleDict({str(member.steps): member for member in shared})
        self.schedule, self.shape, self.condition_dim = schedule, tuple(shape), condition_dim
        self.width, self.depth, self.order = width, depth, order
        self.reader = Reader(self.shape, condition_dim, width, depth)
        self.mix = nn.Linear(width, width)
        heads = {
            str(one.steps): nn.Linear(width, one.rows * one.steps, bias=False) for one in shared
        }
        for head in heads.values():
            nn.init.zeros_(head.weight)
        self.heads = nn.ModuleDict(heads)
        self.steps = max(self.counts)

    def choose(self, steps: int) -> Self:
        """Plan ``steps`` steps from now on.

        Raises:
            ValueError: if it was not made for that many.
        """
        if steps not in self.counts:
            raise ValueError(
                f"steps must be one of {', '.join(map(str, self.counts))}, got {steps}"
            )
        self.steps = steps
        return self

    def table(self, steps: int) -> Global:
        """What all samples share at ``steps`` steps."""
        member = self.shared[str(steps)]
        assert isinstance(member, Global)
        return member

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Discretization:
        """The plan at the chosen number of steps."""
        hidden = F.silu(self.mix(self.reader(noise, features)))
        member = self.table(self.steps)
        own = self.heads[str(self.steps)](hidden).unflatten(1, (member.rows, member.steps))
        return member.plan(member.free + own)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Tables learn like global plans, the network's weights at the rate of the trunk."""
        tables = list(self.shared.parameters())
        known = {id(p) for p in tables}
        return [
            (tables, 1.0),
            ([p for p in self.parameters() if id(p) not in known], self.reader.trunk.rate),
        ]

    def describe(self) -> dict[str, Any]:
        """Also for which numbers of steps, and which is chosen."""
        names = ("shape", "condition_dim", "width", "depth", "order")
        return {
            "schedule": describe(self.schedule),
            "bounds": asdict(self.table(self.steps).bounds),
            "counts": list(self.counts),
            "steps": self.steps,
            "network": {name: getattr(self, name) for name in names},
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Built like the original, then given its state."""
        bases = [tensors[f"shared.{steps}.base"] for steps in config["counts"]]
        network = config["network"] | {"shape": tuple(config["network"]["shape"])}
        schedule: NoiseSchedule = rebuild(config["schedule"], SCHEDULES)
        policy = cls(bases, schedule, Bounds(**config["bounds"]), **network)
        policy.load_state_dict(dict(tensors))
        return policy.choose(config["steps"])
