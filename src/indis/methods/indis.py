"""INDIS (arXiv 2603.17671): tune phi(x_T, c) on teacher endpoints. Its baselines and ablations are fields, not copies:

=====================================  =======================================
field                                  what it gives
=====================================  =======================================
``per_instance=False``                 one learned plan for all (GOD)
``dtau=0``, ``gamma=0``                without time shifts, without scales
``use_condition=False``                phi sees the noise alone
``weights=b``                          also corrects multistep weights by up to b
=====================================  =======================================
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from indis import grids, solvers
from indis.denoise import Denoiser
from indis.discretization import Bounds, Shift
from indis.losses import Loss
from indis.noise import Domain
from indis.policies import Fixed, Global, Instance, LogitPolicy
from indis.sampler import Sampler
from indis.teacher import Endpoints
from indis.training import Fit, FitConfig


@dataclass(frozen=True)
class IndisConfig:
    """One fit. ``None`` bounds mean what suits the denoiser's schedule (see :meth:`Bounds.natural`)."""

    steps: int = 5
    solver: str = "ipndm:3"  # paper: iPNDM; the order is ours
    grid: str = "polynomial:7"  # the base grid, where an untrained phi starts
    analytic_first: bool = False  # paper: "when it helps"
    per_instance: bool = True
    use_condition: bool = True
    dtau: float = 0.5  # b of Eq. 6; ours
    gamma: float = 0.5  # b of Eq. 6; ours
    weights: float = 0.0  # not in the paper
    shift: Shift | None = None
    domain: Domain | None = None
    width: int = 128
    depth: int = 3
    loss: str = "mse"  # paper: LPIPS
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        solvers.named(self.solver)
        grids.named(self.grid)

    def bounds(self, denoiser: Denoiser) -> Bounds:
        """The bounds in the terms of a denoiser's schedule."""
        given = {"shift": self.shift, "domain": self.domain}
        chosen = {name: value for name, value in given.items() if value is not None}
        sizes = {"dtau": self.dtau, "gamma": self.gamma, "weights": self.weights}
        return Bounds.natural(denoiser.schedule, **sizes, **chosen)


def heuristic(denoiser: Denoiser, *, solver: str, grid: str, steps: int, analytic_first: bool = False) -> Sampler:
    """A plain sampler on a named grid: no learning."""
    tau = grids.named(grid)(denoiser.schedule, steps)
    return Sampler(Fixed(tau), solvers.named(solver), analytic_first)


def untrained(config: IndisConfig, denoiser: Denoiser) -> Sampler:
    """The sampler of a config before any tuning: equal to its base solver, bit for bit."""
    solver = solvers.named(config.solver)
    base = grids.named(config.grid)(denoiser.schedule, config.steps)
    return Sampler(_policy(config, denoiser, base, solver.memory), solver, config.analytic_first)


def fit(config: IndisConfig, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None) -> Fit:
    """A fit that is ready to :meth:`~indis.training.Fit.run`.

    ``start`` is a fitted global plan that phi begins at, so that it need only learn what an instance adds.

    Raises:
        ValueError: if ``start`` is not a global plan, or phi cannot begin there.
    """
    sampler = untrained(config, denoiser)
    if start is not None:
        if not (isinstance(sampler.policy, Instance) and isinstance(start.policy, Global)):
            raise ValueError("start must be a fitted global plan, and the policy to fit per instance")
        sampler.policy.start_at(start.policy)
    return Fit(sampler, denoiser, data, loss, config.fit)


def _policy(config: IndisConfig, denoiser: Denoiser, base: torch.Tensor, order: int) -> LogitPolicy:
    bounds = config.bounds(denoiser)
    if not config.per_instance:
        return Global(base, denoiser.schedule, bounds, order)
    features = denoiser.condition([0]).features if config.use_condition else None
    # The initial weights of phi are part of the experiment's seed, and drawing them must not disturb the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.fit.seed)
        return Instance(
            base,
            denoiser.schedule,
            bounds,
            shape=denoiser.shape,
            condition_dim=0 if features is None else features.shape[-1],
            width=config.width,
            depth=config.depth,
            order=order,
        )
