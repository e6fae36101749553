"""One phi for every N. Beyond the paper.

A plan of N steps has N columns of logits. Here a column is a function of the sample *and of where the step lies*,

    noise, condition -> trunk -> h        (k, N) -> place -> p        perceptron(h + p) -> logits of column k

so one network serves every N, and what it learns at one N helps at its neighbours. What all samples share at an N, a
table of logits around that N's base grid, is a handful of numbers and stays its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.discretization import Bounds, Discretization
from indis.noise import SCHEDULES, NoiseSchedule
from indis.policies.encoders import Reader
from indis.policies.policy import Global, Policy
from indis.storage import describe, rebuild

WAVES = 3  # of each end of an interval, to tell steps apart


class AnySteps(Policy):
    """A learned policy for each number of steps of ``bases``; :meth:`choose` says which it is at the moment.

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
            raise ValueError(f"bases must be grids of different numbers of steps, got {self.counts}")
        self.shared = nn.ModuleDict({str(member.steps): member for member in shared})
        self.schedule, self.shape, self.condition_dim = schedule, tuple(shape), condition_dim
        self.width, self.depth, self.order = width, depth, order
        self.reader = Reader(self.shape, condition_dim, width, depth)
        self.mix, self.place = nn.Linear(width, width), nn.Linear(4 * WAVES + 1, width)
        self.second, self.head = nn.Linear(width, width), nn.Linear(width, shared[0].rows, bias=False)
        nn.init.zeros_(self.head.weight)
        self.steps = max(self.counts)

    def choose(self, steps: int) -> Self:
        """Plan ``steps`` steps from now on.

        Raises:
            ValueError: if it was not made for that many.
        """
        if steps not in self.counts:
            raise ValueError(f"steps must be one of {', '.join(map(str, self.counts))}, got {steps}")
        self.steps = steps
        return self

    def table(self, steps: int) -> Global:
        """What all samples share at ``steps`` steps."""
        member = self.shared[str(steps)]
        assert isinstance(member, Global)
        return member

    def forward(self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None) -> Discretization:
        """The plan at the chosen number of steps."""
        hidden = self.reader(noise, features)
        placed = self.place(places(self.steps).to(hidden))
        column = F.silu(self.second(F.silu(self.mix(hidden)[:, None] + placed)))
        member = self.table(self.steps)
        return member.plan(member.free + self.head(column).movedim(1, 2))

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Tables learn like global plans, the network's weights at the rate of the trunk."""
        tables = list(self.shared.parameters())
        known = {id(p) for p in tables}
        return [(tables, 1.0), ([p for p in self.parameters() if id(p) not in known], self.reader.trunk.rate)]

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


def places(steps: int) -> Tensor:
    """Where each of ``steps`` intervals begins and ends, ``(steps, 4 WAVES + 1)``, and how many there are."""
    ends = torch.arange(steps + 1) / steps
    waves = ends[:, None] * math.pi * 2.0 ** torch.arange(WAVES)
    encoded = torch.cat([waves.sin(), waves.cos()], dim=1)
    return torch.cat([encoded[:-1], encoded[1:], torch.full((steps, 1), 3.0 / steps)], dim=1)
