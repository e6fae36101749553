"""INDIS itself: phi(x_T, c) gives every sample its own discretization (paper, sec. 3.2 and Fig. 4).

    noise -> trunk -> h        condition -> linear -> e        h + e -> perceptron -> logits (3 + order) x N

The last layer starts at zero, so an untrained phi is its base solver exactly and training starts
from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.noise import NoiseSchedule
from indis.plan import Bounds
from indis.policies.base import Global, LogitPolicy
from indis.policies.encoders import Reader


class Instance(LogitPolicy):
    """The learned policy. ``condition_dim`` 0 means that phi sees the noise alone."""

    views = 1  # how many tensors of the sample's shape the trunk sees side by side

    def __init__(
        self,
        base: Tensor,
        schedule: NoiseSchedule,
        bounds: Bounds,
        *,
        shape: tuple[int, ...],
        condition_dim: int = 0,
        width: int = 128,
        depth: int = 3,
        order: int = 0,
    ) -> None:
        super().__init__(base, schedule, bounds, order)
        self.shape, self.condition_dim, self.width, self.depth = (
            tuple(shape),
            condition_dim,
            width,
            depth,
        )
        self.reader = Reader(
            (self.views * self.shape[0], *self.shape[1:]), condition_dim, width, depth
        )
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, self.rows * self.steps)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(self, noise: Tensor, features: Tensor | None, index: Tensor | None) -> Tensor:
        """One set of logits a sample."""
        return self.read(noise, features)

    def read(self, seen: Tensor, features: Tensor | None, place: Tensor | None = None) -> Tensor:
        """Logits ``(batch, rows, steps)`` from what the trunk sees; ``place`` is added to what is
        made of that.
        """
        hidden = self.reader(seen, features)
        hidden = F.silu(self.mix(hidden if place is None else hidden + place))
        return self.head(hidden).unflatten(1, (self.rows, self.steps))

    def start_at(self, plan: Global) -> None:
        """Begin at a fitted global plan instead of the base grid: the network then learns what an
        instance adds.

        Raises:
            ValueError: if the plan has another base grid, other bounds or other freedoms.
        """
        base = plan.base.to(self.base.device)
        if plan.bounds != self.bounds or plan.rows != self.rows or not torch.equal(base, self.base):
            raise ValueError(
                "start must be a global plan on the same base grid with the same bounds and freedoms"
            )
        with torch.no_grad():
            self.scale.copy_(plan.scale)
            self.head.bias.copy_(plan.free.flatten())

    def describe(self) -> dict[str, Any]:
        """Also how the network is built."""
        names = ("shape", "condition_dim", "width", "depth")
        return super().describe() | {"network": {name: getattr(self, name) for name in names}}

    @classmethod
    def _own(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return config["network"] | {"shape": tuple(config["network"]["shape"])}

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """The shared offset of the logits learns like a global plan, the network's weights at the
        rate of the trunk.
        """
        weights = [p for p in self.parameters() if p is not self.head.bias]
        return [([self.head.bias], 1.0), (weights, self.reader.trunk.rate)]
