r"""Policies: from a sample's starting noise and condition to its discretization.

======================  =========================================================  =====================
policy                  a plan of its own for                                      parameters
======================  =========================================================  =====================
:class:`Fixed`          everybody the same, given                                  none
:class:`Global`         everybody the same, learned (GOD)                          (1, rows, steps)
:class:`PerSample`      each sample of one data set, overfitted (the oracle)       (count, rows, steps)
LD3Policy               everybody the same, learned: stamps and shifts             2 steps - 1
DyWeightPolicy          everybody the same, learned: weights and time scales       (steps, history), steps
Instance                each sample, as a function phi(x_T, c) of what it is       a small network
ClosedLoop              each sample, step by step from states and answers          a small network
AnySteps                each sample, at any N of a range: one phi for every N      a small network, tables
OneShot                 each sample, as a function of x_T: timesteps alone         a small network
MidpointTable           everybody the same, learned (EPD-Solver, AdaSDE)           (steps, points) each
MidpointPredictor       each sample, step by step from the answers (AMED)          a small network
======================  =========================================================  =====================

All learned ones start at a base grid. Where they produce logits around it, zero logits are the base
solver bit for bit. The midpoint policies leave the base grid where it is and ask inside its steps;
untrained ones are the midpoint rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from indis.noise import SCHEDULES, NoiseSchedule
from indis.plan import LOGIT_ROWS, Bounds, Discretization, Keep, Plan, from_logits
from indis.storage import describe, rebuild


class Policy(nn.Module, ABC):
    """Maps unit noise ``(batch, *shape)`` and condition features ``(batch, dim)`` to a plan with
    ``steps`` steps.

    A policy is stored as :meth:`describe` and its :meth:`~torch.nn.Module.state_dict`;
    :meth:`rebuild` undoes it.
    """

    steps: int
    to_zero: bool = False

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Buffers of times stay float64 on the CPU wherever the networks go (see indis.plan).
        times = {id(buffer) for buffer in self.buffers() if buffer.dtype == torch.float64}
        return super()._apply(lambda t: t if id(t) in times else fn(t), recurse)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the policy cannot read samples of this shape."""
        own = getattr(self, "shape", None)
        if own is not None and tuple(own) != shape:
            raise ValueError(
                f"denoiser must have the shape of the sampler, {tuple(own)}, got {shape}"
            )

    @abstractmethod
    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """The plan. ``index`` ``(batch,)`` names the samples within their data set; only PerSample
        reads it.
        """

    def describe(self) -> dict[str, Any]:
        """Its hyper-parameters as JSON.

        Raises:
            TypeError: if this kind of policy is not stored.
        """
        raise TypeError(f"policy {type(self).__name__} cannot be saved")

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The policy with these hyper-parameters and this state."""
        raise TypeError(
            f"policy {cls.__name__} cannot be loaded: {sorted(config)}, {sorted(tensors)}"
        )

    def frozen(self) -> Policy:
        """What is kept once it is tuned; a plan that everybody shares needs no parametrisation any
        more.
        """
        return self

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Groups of parameters and how fast each learns, relative to the learning rate of a bare
        logit.
        """
        return [(list(self.parameters()), 1.0)]

    def parameter_count(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters())


def shared_grid(base: Tensor) -> Tensor:
    """An own copy of a base grid ``(1, steps + 1)``.

    Raises:
        ValueError: if it has another shape.
    """
    if base.ndim != 2 or base.shape[0] != 1 or base.shape[1] < 2:
        raise ValueError(f"base must be a shared grid (1, steps + 1), got {tuple(base.shape)}")
    return base.detach().clone()


class Fixed(Policy):
    """A given plan, shared by all samples."""

    tau: Tensor
    dtau: Tensor
    gamma: Tensor
    weights: Tensor | None
    stretch: Tensor | None
    keep: Keep

    def __init__(self, plan: Discretization | Tensor) -> None:
        super().__init__()
        plan = Discretization.plain(plan) if isinstance(plan, Tensor) else plan
        self.steps = plan.steps
        self.keep = plan.keep
        for name in ("tau", "dtau", "gamma", "weights", "stretch"):
            self.register_buffer(name, getattr(plan, name))

    def check(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError if the plan does not fit a schedule."""
        self.plan.check(schedule).check_start(schedule)

    @property
    def plan(self) -> Discretization:
        """The plan, whatever the sample."""
        return Discretization(
            self.tau, self.dtau, self.gamma, self.weights, self.stretch, self.keep
        )

    def describe(self) -> dict[str, Any]:
        """What a time shift keeps; the rest of the plan is its state."""
        return {"keep": self.keep}

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """A plan from its columns."""
        columns: dict[str, Any] = dict(tensors)
        return cls(Discretization(**columns, keep=config["keep"]))

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Discretization:
        """The plan, whatever the sample."""
        return self.plan


class LogitPolicy(Policy):
    """A policy that moves logits around a base grid within bounds. Subclasses say where the logits
    come from.

    ``order`` is how many multistep weights a step may correct; they exist only if
    ``bounds.weights`` is positive. ``scale`` ``(1, rows, steps)`` multiplies the logits: end points
    are orders of magnitude more sensitive to some of them than to others, and a learning rate that
    suits the former would never move the latter (see :func:`~indis.sensitivity.sensitivity`).
    """

    base: Tensor
    scale: Tensor

    def __init__(
        self, base: Tensor, schedule: NoiseSchedule, bounds: Bounds, order: int = 0
    ) -> None:
        super().__init__()
        self.register_buffer("base", shared_grid(base))
        self.schedule, self.bounds = schedule, bounds
        self.order = order if bounds.weights > 0 else 0
        self.steps, self.rows = base.shape[1] - 1, LOGIT_ROWS + self.order
        self.register_buffer("scale", torch.ones(1, self.rows, self.steps))

    def parameter_count(self) -> int:
        """How many numbers are learned: of a table of logits only the rows that act, whose bound is
        not zero.
        """
        table = dict(self.named_parameters(recurse=False)).get("free")
        sizes = {1: self.bounds.dtau, 2: self.bounds.gamma}  # rows of from_logits
        idle = (
            0
            if table is None
            else sum(table[:, row].numel() for row, size in sizes.items() if not size)
        )
        return super().parameter_count() - idle

    @abstractmethod
    def logits(self, noise: Tensor, features: Tensor | None, index: Tensor | None) -> Tensor:
        """``(grid, rows, steps)``."""

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """Eq. 6-7 of the logits."""
        return self.plan(self.logits(noise, features, index))

    def plan(self, logits: Tensor) -> Discretization:
        """The discretization of raw logits ``(grid, rows, steps)``."""
        return discretize(self.scale * logits, self.base, self.schedule, self.bounds)

    def describe(self) -> dict[str, Any]:
        """Schedule, bounds and order; subclasses add what else they are built from."""
        return {
            "schedule": describe(self.schedule),
            "bounds": asdict(self.bounds),
            "order": self.order,
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Built like the original, then given its state."""
        schedule: NoiseSchedule = rebuild(config["schedule"], SCHEDULES)
        shared = {
            "schedule": schedule,
            "bounds": Bounds(**{k: v for k, v in config["bounds"].items() if k != "track"}),
            "order": config["order"],
        }
        policy = cls(base=tensors["base"], **shared, **cls._own(config, tensors))
        policy.load_state_dict(dict(tensors))
        return policy

    @classmethod
    def _own(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Further arguments of the constructor."""
        return {}


def discretize(
    logits: Tensor, base: Tensor, schedule: NoiseSchedule, bounds: Bounds, begun: int = 0
) -> Discretization:
    """Turn logits into a plan."""
    return from_logits(logits, base, schedule, bounds)


class Global(LogitPolicy):
    """One learned plan for all samples."""

    def __init__(
        self, base: Tensor, schedule: NoiseSchedule, bounds: Bounds, order: int = 0
    ) -> None:
        super().__init__(base, schedule, bounds, order)
        self.free = nn.Parameter(torch.zeros(1, self.rows, self.steps))

    def logits(self, noise: Tensor, features: Tensor | None, index: Tensor | None) -> Tensor:
        """The parameters themselves."""
        return self.free


class PerSample(LogitPolicy):
    """An own plan for each of ``count`` samples, with no way to generalise: the oracle of the
    paper's Fig. 2c.
    """

    def __init__(
        self, count: int, base: Tensor, schedule: NoiseSchedule, bounds: Bounds, order: int = 0
    ) -> None:
        super().__init__(base, schedule, bounds, order)
        self.free = nn.Parameter(torch.zeros(count, self.rows, self.steps))

    @classmethod
    def _own(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"count": len(tensors["free"])}

    def logits(self, noise: Tensor, features: Tensor | None, index: Tensor | None) -> Tensor:
        """The rows that ``index`` names, all of them if it is absent."""
        if index is None and len(noise) != len(self.free):
            raise ValueError(
                f"PerSample knows {len(self.free)} samples by index, got {len(noise)} without index"
            )
        return self.free if index is None else self.free[index]
