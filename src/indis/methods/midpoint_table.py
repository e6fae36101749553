r"""What EPD-Solver, AdaSDE and AMED share: steps of two stages, and midpoints in a learned table.

A step from t to t' has K midpoints. In the noise-to-signal ratio :math:`\rho = \sigma / \alpha`,
the papers' time,

.. math::
    \rho_k = \rho'^{\,r_k} \rho^{1 - r_k}, \qquad \text{asked at } s^{time}_k \rho_k, \qquad
    d = \sum_k w_k s^{dir}_k d_k

The papers keep the *data prediction* of the shifted question and take the slope at the midpoint
itself, :math:`d_k = (x - D(x, s^{time}_k \rho_k)) / \rho_k` with the state x / alpha: the plan's
``keep`` is "data". :math:`w_k s^{dir}_k` are corrections of the solver's weights, so they scale
slopes whatever the network returns.

A table of zeros is the composite midpoint rule. The papers start from random numbers, so that
midpoints differ; here they start at different places, (2k - 1) / (2K) of the step, with all else
equal, so an untrained sampler is a known one and the same for every seed.

With churn (AdaSDE) the state goes up to a noisier time between steps. Its fresh noise is a function
of the sample's *starting* noise: the SHA-256 of that noise's bytes, in single precision, and of the
step's number seeds a generator. So a seed is one sample on every device and in every batch; the
same noise rounded to half precision is another one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis import solvers
from indis.checks import require_choice
from indis.denoise import Denoiser
from indis.methods.method import Method
from indis.noise import SCHEDULES, Domain, NoiseSchedule, limit_shift, shifted
from indis.numerics import TIME_DTYPE
from indis.plan import Churn, Decision, Discretization, Plan, PlanWrapper
from indis.policies import Policy, SharedPolicy, shared_grid
from indis.sampler import Sampler
from indis.solvers import Midpoint, Solver
from indis.storage import describe, from_fields, rebuild

# Midpoints keep this fraction of the step from its ends, so that multistep weights stay finite for
# any logits; ours.
MARGIN = 1e-3
# AdaSDE's least churn (the added noise is a root, whose slope is infinite at none), and its start
# at 60 % of the most.
LEAST_CHURN = 2e-4
CHURN_LOGIT = 2 * math.log(0.6 / 0.4)


@dataclass(frozen=True)
class MidpointBounds:
    """How far midpoints may move from the plain midpoint rule; zero removes a freedom exactly.

    Args:
        s_dir: b of the slope scales, s = 1 + b tanh(raw / ``squash``).
        s_time: b of the scales of the noise level.
        churn: largest relative inflation of sigma / alpha before a step.
        squash: see ``s_dir``.
        domain: where r interpolates: "log_snr" is the papers' geometric mean, "time" suits a flow.

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
        """Return ``s_dir`` or ``s_time`` of an unbounded number."""
        return 1 + getattr(self, name) * torch.tanh(raw.to("cpu", TIME_DTYPE) / self.squash)


def fraction(logit: Tensor) -> Tensor:
    """Return r, the sigmoid of a logit, kept :data:`MARGIN` away from 0 and 1; exactly 1/2 at 0."""
    return 0.5 + (0.5 - MARGIN) * torch.tanh(logit.to("cpu", TIME_DTYPE) / 2)


def between(
    schedule: NoiseSchedule, domain: Domain, start: Tensor, stop: Tensor, r: Tensor
) -> Tensor:
    """Return the time a fraction ``r`` of the way from ``start`` to ``stop``; shapes broadcast."""
    if domain == "time":
        return start + r * (stop - start)
    return schedule.time((1 - r) * schedule.log_snr(start) + r * schedule.log_snr(stop))


def noisier(schedule: NoiseSchedule, tau: Tensor, factor: Tensor) -> Tensor:
    """Return how much later sigma / alpha is ``factor`` times that of ``tau``; exactly 0 for 1."""
    return limit_shift(schedule, tau, shifted(schedule, tau, factor.log()) - tau)


def fresh_noise(noise: Tensor, step: int) -> Tensor:
    """Return unit noise for ``step``, like the starting ``noise`` ``(batch, *shape)``."""
    generator, drawn = torch.Generator(), []
    for row in noise.detach().cpu().float().contiguous():
        digest = hashlib.sha256(row.numpy().tobytes() + step.to_bytes(4)).digest()
        generator.manual_seed(int.from_bytes(digest[:8]))
        drawn.append(torch.randn(row.shape, generator=generator))
    return torch.stack(drawn).to(noise)


class Churned(PlanWrapper):
    """A plan whose steps, after the first, begin at a noisier time.

    Args:
        plan: of the sub-steps.
        tau: where the steps after the first start, ``(grid, N - 1)``.
        every: number of sub-steps a step.
        noise: the starting noise, ``(batch, *shape)``.
    """

    def __init__(self, plan: Plan, tau: Tensor, every: int, noise: Tensor) -> None:
        super().__init__(plan)
        self.tau, self.every, self.noise = tau, every, noise

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        """Return the plan's decision, after a whole step with churn, unless it was the last."""
        decision = super().decide(k, x, answer, features)
        step, rest = divmod(k + 1, self.every)
        if rest or k + 1 == self.steps:
            return decision
        churn = Churn(self.tau[:, step - 1], fresh_noise(self.noise, step).to(x))
        return replace(decision, churn=churn)


class MidpointTable(SharedPolicy):
    """A learned table of midpoints, for the solver :class:`~indis.solvers.Midpoint`.

    Args:
        base: the nodes between steps, ``(1, N + 1)``, which stay.
        schedule: noise schedule of the denoiser.
        bounds: of the table's numbers.
        points: number K of midpoints a step, that of the solver.
    """

    base: Tensor

    def __init__(
        self, base: Tensor, schedule: NoiseSchedule, bounds: MidpointBounds, points: int = 1
    ) -> None:
        super().__init__()
        self.register_buffer("base", shared_grid(base))
        self.schedule, self.bounds, self.points = schedule, bounds, points
        self.order, self.whole = points, base.shape[1] - 1
        self.steps = self.whole * (points + 1)
        table = (self.whole, points)
        shapes = {"r": table}
        shapes |= {name: table for name in ("s_dir", "s_time") if getattr(bounds, name)}
        if points > 1:
            shapes["w"] = table
        if bounds.churn and self.whole > 1:  # the first start is given, so it has no churn
            shapes["churn"] = (1, self.whole - 1)
        self.free = nn.ParameterDict({name: torch.zeros(size) for name, size in shapes.items()})

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """Return the plan; what is fresh in one with churn depends on the noise."""
        if "churn" not in self.free:
            return self.shared_plan()
        starts = torch.cat([self.base[:, :1], self._churned()], dim=1)
        return Churned(self._columns(starts), starts[:, 1:], self.points + 1, noise)

    def shared_plan(self) -> Discretization:
        """Return the plan that all samples share.

        Raises:
            TypeError: if there is churn, whose noise is each sample's own.
        """
        if "churn" in self.free:
            return super(SharedPolicy, self).shared_plan()
        return self._columns(self.base[:, :-1])

    def frozen(self) -> Policy:
        """Return the plan alone, unless there is fresh noise to draw."""
        return self if "churn" in self.free else super().frozen()

    def describe(self) -> dict[str, Any]:
        """Return what it is built from."""
        return {
            "schedule": describe(self.schedule),
            "bounds": asdict(self.bounds),
            "points": self.points,
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the policy of this description and state."""
        schedule = rebuild(config["schedule"], SCHEDULES)
        bounds = from_fields(MidpointBounds, config["bounds"])
        policy = cls(tensors["base"], schedule, bounds, config["points"])
        policy.load_state_dict(dict(tensors))
        return policy

    def _churned(self) -> Tensor:
        """The times ``(1, N - 1)`` at which the later steps start."""
        inside, least, most = self.base[:, 1:-1], LEAST_CHURN, self.bounds.churn
        raw = self.free["churn"].to("cpu", TIME_DTYPE) + CHURN_LOGIT
        amount = least + (most - least) * torch.sigmoid(raw / 2)
        return inside + noisier(self.schedule, inside, 1 + amount)

    def _columns(self, starts: Tensor) -> Discretization:
        """Every step's start and midpoints side by side; midpoints are counted from ``starts``
        ``(1, N)``.
        """
        r, s_dir, s_time, w = self._table()
        begin, stop = starts[..., None], self.base[:, 1:, None]
        tau = between(self.schedule, self.bounds.domain, begin, stop, r)
        nodes = torch.cat([self.base[:, :-1, None], tau], dim=2).flatten(1)
        shifts = F.pad(noisier(self.schedule, tau, s_time), (1, 0)).flatten(1)
        # What makes the mean of the midpoints a weighted sum, newest first: at the last sub-step.
        weights = (w * s_dir - 1 / self.points).flip(2)[:, :, None]
        return Discretization(
            torch.cat([nodes, self.base[:, -1:]], dim=1),
            shifts,
            torch.ones_like(shifts),
            F.pad(weights, (0, 0, self.points, 0)).flatten(1, 2),
            keep="data",
        )

    def _table(self) -> list[Tensor]:
        """r, s_dir, s_time and w, each ``(1, N, K)``, with the midpoints of a step noisiest
        first.
        """
        number = torch.arange(self.points, dtype=TIME_DTYPE)
        places = (2 * number + 1) / (2 * self.points)
        begin = 2 * torch.atanh((places - 0.5) / (0.5 - MARGIN))
        r = fraction(begin + self.free["r"].to(begin))
        none = torch.zeros_like(r)
        raw = {n: self.free.get(n, none) for n in ("s_dir", "s_time", "w")}
        scales = [self.bounds.scale(name, raw[name]) for name in ("s_dir", "s_time")]
        # Midpoints may pass each other while they learn; sorted, equal tables are equal plans.
        order = torch.argsort(r, dim=1, stable=True)
        parts = [r, *scales, torch.softmax(raw["w"].to("cpu", TIME_DTYPE), dim=1)]
        return [part.gather(1, order)[None] for part in parts]


@dataclass(frozen=True)
class TwoStage(Method):
    """A method whose steps ask first at a node, then at points inside the step.

    ``steps`` counts whole steps. ``s_dir`` and ``s_time`` are the papers' bounds b of scales in
    [1 - b, 1 + b].

    Raises:
        ValueError: if a bound is out of range, or the solver is none of the method's.
    """

    steps: int = 3
    """Number of steps, of two evaluations in turn; 3, or 5 evaluations with AFS, is the papers'."""
    solver: str = "midpoint"
    """midpoint[:points[:order]]."""
    grid: str = "vp_time:1"
    """Grid that a fit starts at. time_uniform with rho = 1, as published."""
    analytic_first: bool = True
    """Replace the first evaluation by its closed form (AFS), which saves one. As published."""
    s_dir: float = 0.05
    """Largest change b of the slope at a midpoint: a factor 1 - b ... 1 + b."""
    s_time: float = 0.05
    """Largest change b of the noise level told at a midpoint: a factor 1 - b ... 1 + b."""
    domain: Domain | None = None
    """Domain in which r interpolates. None is what suits the schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_solver(solvers.named(self.solver))
        self._bounds(self.domain or "log_snr")

    @property
    def freedoms(self) -> str:
        """Where midpoints lie, and what of their times, slopes, weights and churn can move."""
        bounds, solver = self._bounds("log_snr"), solvers.named(self.solver)
        sizes = {"time scales": bounds.s_time, "slope scales": bounds.s_dir, "churn": bounds.churn}
        sizes["weights"] = isinstance(solver, Midpoint) and solver.points > 1
        return "+".join(["midpoints", *(name for name, size in sizes.items() if size)])

    def bounds(self, denoiser: Denoiser) -> MidpointBounds:
        """Return the bounds in the terms of a denoiser's schedule."""
        return self._bounds(self.domain or denoiser.schedule.domain)

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """Return the composite midpoint rule: K midpoints at the middles of the step's K parts."""
        solver = solvers.named(self.solver)
        assert isinstance(solver, Midpoint)  # checked when the config was made
        base = self.base(denoiser.schedule)
        policy = MidpointTable(base, denoiser.schedule, self.bounds(denoiser), solver.points)
        return Sampler(policy, solver, self.analytic_first)

    @staticmethod
    def steps_for(nfe: int, *, analytic_first: bool = False) -> int:
        """Return N of 2N evaluations one after another, 2N - 1 with an analytic first step.

        Raises:
            ValueError: if no number of steps costs ``nfe``.
        """
        steps, rest = divmod(nfe + analytic_first, 2)
        if rest or steps < 1:
            even = "1, 3, 5, ... with an analytic first step" if analytic_first else "2, 4, 6, ..."
            raise ValueError(f"nfe must be {even} for a method of two stages a step, got {nfe}")
        return steps

    def _bounds(self, domain: Domain) -> MidpointBounds:
        return MidpointBounds(s_dir=self.s_dir, s_time=self.s_time, domain=domain)

    def _check_solver(self, solver: Solver) -> None:
        if not isinstance(solver, Midpoint):
            raise ValueError(
                f"solver must be midpoint[:points[:order]] for {type(self).__name__}, "
                f"got {self.solver!r}"
            )
