r"""AMED's predictor: each sample's midpoints, decided step by step from what the network has just
thought.

    features of the evaluation at t -> linear -> SiLU -> linear -> 4 numbers
    t, t' -> sines and cosines -> linear -> SiLU -> 8 numbers each       all 20 -> linear -> r, s_dir, s_time

(Zhou et al., 2024.) The plan is closed-loop: it is asked after the evaluation at the start of a
step and reads its features then, at no further network call. No gradient flows into the features,
as in the paper, where the state at the start of a step is given.

The last layer starts at zero, so an untrained predictor is the midpoint rule; the paper's starts at
random. Times are embedded in the schedule's own unit, sigma in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.noise import SCHEDULES, NoiseSchedule
from indis.plan import Decision, Keep
from indis.policies.base import Policy, shared_grid
from indis.policies.midpoint import MidpointBounds, between, fraction, noisier
from indis.storage import describe, rebuild

Features = Literal["bottleneck", "answer"]
CODE, EMBEDDING = 4, 8  # widths of the features' code and of a time's embedding, the paper's
CELLS = 8  # pooled pictures are CELLS x CELLS, the paper's bottleneck


def pooled(answer: Tensor) -> Tensor:
    """Features ``(batch, at most 64)`` of an answer ``(batch, *shape)``: a picture's channel mean
    in 8 x 8 cells.
    """
    if answer.ndim == 4:
        return F.adaptive_avg_pool2d(answer.mean(1), CELLS).flatten(1)
    flat = answer.flatten(1)
    return flat if flat.shape[1] <= CELLS**2 else F.adaptive_avg_pool1d(flat, CELLS**2)


class MidpointPredictor(Policy):
    """The learned network of AMED, for steps between the nodes of ``base`` ``(1, N + 1)``.

    ``size`` is that of the features. Its plan suits :class:`~indis.solvers.Midpoint`, whose slope
    at the midpoint s_dir scales. As a ``plugin`` it suits a multistep solver, which takes node and
    midpoint for two steps of its own, and s_dir stretches the whole second one.
    """

    base: Tensor
    analytic_first = False

    def __init__(
        self,
        base: Tensor,
        schedule: NoiseSchedule,
        bounds: MidpointBounds,
        *,
        size: int,
        features: Features = "bottleneck",
        plugin: bool = False,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.register_buffer("base", shared_grid(base))
        self.schedule, self.bounds = schedule, bounds
        self.size, self.features, self.plugin, self.width = size, features, plugin, width
        self.steps = 2 * (base.shape[1] - 1)
        self.rows = ("r", *(name for name in ("s_dir", "s_time") if getattr(bounds, name)))
        self.code = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, CODE))
        self.embedding = nn.Linear(EMBEDDING, EMBEDDING)
        self.head = nn.Linear(CODE + 2 * EMBEDDING, len(self.rows))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Feedback:
        """A plan for one run; neither the noise nor the condition decides anything by itself."""
        return Feedback(self)

    def predict(
        self, features: Tensor, start: Tensor, stop: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """r, s_dir and s_time, each ``(batch,)``, of a step between two times ``(1,)``; features
        ``(batch, size)``.

        Raises:
            ValueError: if the features have another size.
        """
        if features.shape[1] != self.size:
            raise ValueError(f"features must be (batch, {self.size}), got {tuple(features.shape)}")
        times = torch.cat([self._embedded(start), self._embedded(stop)], dim=1).expand(
            len(features), -1
        )
        out = self.head(torch.cat([self.code(features.to(times.dtype)), times], dim=1))
        raw = dict(zip(self.rows, out.unbind(1), strict=True))
        s_dir, s_time = (
            self.bounds.scale(name, raw.get(name, torch.zeros_like(raw["r"])))
            for name in ("s_dir", "s_time")
        )
        return fraction(raw["r"]), s_dir, s_time

    def describe(self) -> dict[str, Any]:
        """What it is built from."""
        names = ("size", "features", "plugin", "width")
        return {
            "schedule": describe(self.schedule),
            "bounds": asdict(self.bounds),
            "network": {name: getattr(self, name) for name in names},
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Built like the original, then given its state."""
        schedule: NoiseSchedule = rebuild(config["schedule"], SCHEDULES)
        policy = cls(
            tensors["base"], schedule, MidpointBounds(**config["bounds"]), **config["network"]
        )
        policy.load_state_dict(dict(tensors))
        return policy

    def _embedded(self, t: Tensor) -> Tensor:
        """``(1, 8)``: sines and cosines of t at frequencies from 1 to 1e-4, through a layer."""
        half = EMBEDDING // 2
        frequency = torch.exp(
            -math.log(1e4) * torch.arange(half, dtype=t.dtype, device=t.device) / (half - 1)
        )
        angle = t[:, None] * frequency
        return F.silu(
            self.embedding(torch.cat([angle.sin(), angle.cos()], dim=1).to(self.head.weight.dtype))
        )


class Feedback:
    """The closed-loop plan of one run: even sub-steps go to a midpoint, odd ones to the next
    node.
    """

    keep: Keep = "data"  # as in the tables of indis.policies.midpoint
    to_zero = False

    def __init__(self, policy: MidpointPredictor) -> None:
        self.policy, self.steps = policy, policy.steps
        self.needs_features = policy.features == "bottleneck"
        self.s_dir: Tensor | None = None  # of the midpoint under way

    def start(self) -> tuple[Tensor, Tensor]:
        """The first node, asked where it is."""
        first = self.policy.base[:, 0]
        return first, torch.zeros_like(first)

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        """A midpoint after the answer at a node, the next node after the answer at a midpoint."""
        step, inside = divmod(k, 2)
        return self._finish(step) if inside else self._open(step, answer, features)

    def _open(self, step: int, answer: Tensor, features: Tensor | None) -> Decision:
        policy, (start, stop) = (
            self.policy,
            (self.policy.base[:, step], self.policy.base[:, step + 1]),
        )
        r, s_dir, s_time = policy.predict(self._read(step, answer, features), start, stop)
        tau = between(policy.schedule, policy.bounds.domain, start, stop, r)
        dtau = noisier(policy.schedule, tau, s_time)
        self.s_dir = s_dir
        return Decision(torch.ones_like(tau), tau, dtau)

    def _finish(self, step: int) -> Decision:
        assert self.s_dir is not None
        stop = self.policy.base[:, step + 1]
        one, none = torch.ones_like(self.s_dir), torch.zeros_like(stop)
        if self.policy.plugin:
            return Decision(one, stop, none, stretch=self.s_dir)
        return Decision(one, stop, none, weights=(self.s_dir - 1)[:, None])

    def _read(self, step: int, answer: Tensor, features: Tensor | None) -> Tensor:
        """Features ``(batch, size)``; zeros where no network was asked, as published."""
        if self.policy.analytic_first and step == 0:
            return torch.zeros(len(answer), self.policy.size, device=answer.device)
        if self.policy.features == "answer":
            return pooled(answer.detach())
        assert features is not None
        return features
