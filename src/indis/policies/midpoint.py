r"""Midpoints that all samples share: where inside a step to ask, and how to use the answers
(EPD-Solver, AdaSDE).

A step from t to t' has K midpoints. In the noise-to-signal ratio :math:`\rho = \sigma / \alpha`,
the papers' time,

.. math::
    \rho_k = \rho'^{\,r_k} \rho^{1 - r_k}, \qquad \text{asked at } s^{time}_k \rho_k, \qquad
    d = \sum_k w_k s^{dir}_k d_k

The papers keep the *data prediction* of the shifted question and take the slope at the midpoint
itself,
:math:`d_k = (x - D(x, s^{time}_k \rho_k)) / \rho_k` with the state x / alpha: the plan's ``keep`` is "data".
:math:`w_k s^{dir}_k` are corrections of the solver's weights, so they scale slopes
whatever the network returns.

The learned numbers are a table of N x K; a table of zeros is the composite midpoint rule. The
papers start from random numbers, so that midpoints differ; here they start at different places, (2k
- 1) / (2K) of the step, and with all else equal, so an untrained sampler is a known one and the
same for every seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.checks import require_choice
from indis.noise import SCHEDULES, Domain, NoiseSchedule, limit_shift
from indis.numerics import TIME_DTYPE
from indis.plan import Discretization, Plan
from indis.policies.base import Fixed, Policy, shared_grid
from indis.policies.churn import Churned
from indis.storage import describe, rebuild

# Midpoints keep this fraction of the step from its ends, so that multistep weights stay finite for
# any logits; ours.
MARGIN = 1e-3
# AdaSDE's least churn (the added noise is a root, whose slope is infinite at none), and its start
# at 60 % of the most.
LEAST_CHURN = 2e-4
CHURN_LOGIT = 2 * math.log(0.6 / 0.4)


@dataclass(frozen=True)
class MidpointBounds:
    """How far a table or a network may move midpoints from the plain midpoint rule; zero removes a
    freedom exactly.

    ``s_dir`` and ``s_time`` are b in s = 1 + b tanh(raw / ``squash``). ``churn`` is the largest
    relative inflation of sigma / alpha before a step. ``domain`` is where r interpolates: "log_snr"
    is the papers' geometric mean, "time" suits a flow.

    Raises:
        ValueError: if a scale could reach zero, the churn is out of range, or the domain is
            unknown.
    """

    s_dir: float = 0.0
    s_time: float = 0.0
    churn: float = 0.0
    squash: float = 2.0
    domain: Domain = "log_snr"

    def __post_init__(self) -> None:
        for name in ("s_dir", "s_time"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.churn and not LEAST_CHURN < self.churn <= 1:
            raise ValueError(f"churn must be 0 or in ({LEAST_CHURN:g}, 1], got {self.churn}")
        if self.squash <= 0:
            raise ValueError(f"squash must be positive, got {self.squash}")
        require_choice("domain", self.domain, Domain)

    def scale(self, name: str, raw: Tensor) -> Tensor:
        """``s_dir`` or ``s_time`` of an unbounded number."""
        return 1 + getattr(self, name) * torch.tanh(raw.to(TIME_DTYPE) / self.squash)


def fraction(logit: Tensor) -> Tensor:
    """r, the sigmoid of a logit, kept :data:`MARGIN` away from 0 and 1; exactly 1/2 at 0."""
    return 0.5 + (0.5 - MARGIN) * torch.tanh(logit.to(TIME_DTYPE) / 2)


def between(
    schedule: NoiseSchedule, domain: Domain, start: Tensor, stop: Tensor, r: Tensor
) -> Tensor:
    """The time a fraction ``r`` of the way from ``start`` to ``stop``; shapes broadcast."""
    if domain == "time":
        return start + r * (stop - start)
    return schedule.time((1 - r) * schedule.log_snr(start) + r * schedule.log_snr(stop))


def noisier(schedule: NoiseSchedule, tau: Tensor, factor: Tensor) -> Tensor:
    """How much later the time is at which sigma / alpha is ``factor`` times that of ``tau``;
    exactly 0 for 1.
    """
    level = schedule.log_snr(tau)
    shift = schedule.time(level - factor.log()) - schedule.time(level)
    return limit_shift(schedule, tau, shift)


class MidpointTable(Policy):
    """One learned table for all samples, for the solver :class:`~indis.solvers.Midpoint` of the
    same ``points``.

    ``base`` ``(1, N + 1)`` holds the nodes between steps, which stay.
    """

    base: Tensor

    def __init__(
        self, base: Tensor, schedule: NoiseSchedule, bounds: MidpointBounds, points: int = 1
    ) -> None:
        super().__init__()
        self.register_buffer("base", shared_grid(base))
        self.schedule, self.bounds, self.points = schedule, bounds, points
        self.whole = base.shape[1] - 1
        self.steps = self.whole * (points + 1)
        self.free = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name, shape in self._shapes().items()}
        )

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """The plan; with churn, what is fresh in it depends on the noise."""
        if "churn" not in self.free:
            return self._columns(self.base[:, :-1])
        starts = torch.cat([self.base[:, :1], self._churned()], dim=1)
        return Churned(self._columns(starts), starts[:, 1:], self.points + 1, noise)

    def frozen(self) -> Policy:
        """The columns alone, unless there is fresh noise to draw."""
        return self if "churn" in self.free else Fixed(self._columns(self.base[:, :-1]).detach())

    def describe(self) -> dict[str, Any]:
        """What it is built from."""
        return {
            "schedule": describe(self.schedule),
            "bounds": asdict(self.bounds),
            "points": self.points,
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Built like the original, then given its state."""
        schedule: NoiseSchedule = rebuild(config["schedule"], SCHEDULES)
        bounds = MidpointBounds(**config["bounds"])
        policy = cls(tensors["base"], schedule, bounds, config["points"])
        policy.load_state_dict(dict(tensors))
        return policy

    def _shapes(self) -> dict[str, tuple[int, int]]:
        """The parameters that exist: one a step and midpoint. The first start is given, so it has
        no churn.
        """
        table = (self.whole, self.points)
        shapes = {"r": table} | {
            name: table for name in ("s_dir", "s_time") if getattr(self.bounds, name)
        }
        if self.points > 1:
            shapes["w"] = table
        if self.bounds.churn and self.whole > 1:
            shapes["churn"] = (1, self.whole - 1)
        return shapes

    def _churned(self) -> Tensor:
        """The times ``(1, N - 1)`` at which the later steps start."""
        inside, least, most = self.base[:, 1:-1], LEAST_CHURN, self.bounds.churn
        amount = least + (most - least) * torch.sigmoid(
            (self.free["churn"].to(TIME_DTYPE) + CHURN_LOGIT) / 2
        )
        return inside + noisier(self.schedule, inside, 1 + amount)

    def _columns(self, starts: Tensor) -> Discretization:
        """Every step's start and midpoints side by side; ``starts`` ``(1, N)`` are where midpoints
        are counted from.
        """
        r, s_dir, s_time, w = self._table()
        tau = between(
            self.schedule, self.bounds.domain, starts[..., None], self.base[:, 1:, None], r
        )
        dtau = noisier(self.schedule, tau, s_time)
        nodes = torch.cat([self.base[:, :-1, None], tau], dim=2).flatten(1)
        shifts = F.pad(dtau, (1, 0)).flatten(1)
        return Discretization(
            torch.cat([nodes, self.base[:, -1:]], dim=1),
            shifts,
            torch.ones_like(shifts),
            self._corrections(w * s_dir),
            keep="data",
        )

    def _table(self) -> list[Tensor]:
        """r, s_dir, s_time and w, each ``(1, N, K)``, with the midpoints of a step noisiest
        first.
        """
        places = (2 * torch.arange(self.points, dtype=TIME_DTYPE, device=self.base.device) + 1) / (
            2 * self.points
        )
        begin = 2 * torch.atanh((places - 0.5) / (0.5 - MARGIN))
        r = fraction(begin + self.free["r"])
        raw = {
            name: self.free[name] if name in self.free else torch.zeros_like(r)
            for name in ("s_dir", "s_time", "w")
        }
        scales = [self.bounds.scale(name, raw[name]) for name in ("s_dir", "s_time")]
        # Midpoints may pass each other while they learn; sorted, equal tables are equal plans.
        order = torch.argsort(r, dim=1, stable=True)
        parts = [r, *scales, torch.softmax(raw["w"].to(TIME_DTYPE), dim=1)]
        return [part.gather(1, order)[None] for part in parts]

    def _corrections(self, weights: Tensor) -> Tensor:
        """What makes the mean of the midpoints a weighted sum: at the last sub-step of each step,
        newest first.
        """
        return F.pad(
            (weights - 1 / self.points).flip(2)[:, :, None], (0, 0, self.points, 0)
        ).flatten(1, 2)
