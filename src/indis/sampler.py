"""A sampler: a policy and a solver, ready to turn noise into samples. Users call it and artifacts
hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from indis.denoise import UNCONDITIONAL, Condition, Denoiser
from indis.noise import prior, same_schedule
from indis.plan import Decision, Discretization, Keep, Plan
from indis.policies import Attentive, Fixed, Policy
from indis.solvers import Parallel, Solver, State, end, solve, trajectory


@dataclass
class Sampler:
    """``analytic_first`` replaces the first network call by its closed form (AFS).

    Raises:
        ValueError: if no network call is left.
    """

    policy: Policy
    solver: Solver
    analytic_first: bool = False

    def __post_init__(self) -> None:
        if self.nfe < 1:
            raise ValueError(
                f"steps must be above {self.policy.steps} with an analytic first step: no call is left"
            )

    def to(self, device: torch.device | str) -> Sampler:
        """Itself, with its policy moved to a device; like a module of torch it makes no copy."""
        self.policy.to(device)
        return self

    @property
    def nfe(self) -> int:
        """Network evaluations a sample."""
        return self.solver.nfe(self.policy.steps) - self.analytic_first

    @property
    def depth(self) -> int:
        """Network evaluations one after another, fewer than :attr:`nfe` if some can be made at the
        same time.
        """
        count = self.solver.depth if isinstance(self.solver, Parallel) else self.solver.nfe
        return count(self.policy.steps) - self.analytic_first

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        condition: Condition = UNCONDITIONAL,
        *,
        index: Tensor | None = None,
        checkpoint: bool = False,
    ) -> Tensor:
        """Samples from unit ``noise`` ``(batch, *shape)``; same shape, in the denoiser's space.

        Policy, noise, condition and denoiser must be on one device; :func:`~indis.denoise.to_device_of`
        takes them there.

        Raises:
            ValueError: if the noise does not fit the denoiser or the condition, the policy was made
                for another
                schedule or form of answers than the denoiser's, or the denoiser lacks what the
                policy reads.
        """
        return end(self.trajectory(denoiser, noise, condition, index=index, checkpoint=checkpoint))

    def trajectory(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        condition: Condition = UNCONDITIONAL,
        *,
        index: Tensor | None = None,
        checkpoint: bool = False,
    ) -> Iterator[State]:
        """The states after each step, the last of which is what a call returns: to watch, or to
        stop early.

        Raises:
            ValueError: as a call does.
        """
        plan = self._plan(denoiser, noise, condition, index)
        start = prior(denoiser.schedule, noise)
        options = {"analytic_first": self.analytic_first, "checkpoint": checkpoint}
        return trajectory(denoiser, start, plan, self.solver, condition, **options)

    def realized_plan(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition = UNCONDITIONAL
    ) -> Discretization:
        """The discretization that each sample ends up with, closed-loop decisions included; takes a
        whole run.

        What *local* adds to the pictures is in no column: on the plain loop its discretization
        gives other samples.

        Raises:
            ValueError: if the noise does not fit the denoiser or the condition, or the schedule the
                policy.
        """
        plan = self._plan(denoiser, noise, condition, None)
        if isinstance(plan, Discretization):
            return plan
        record = _Record(plan)
        start = prior(denoiser.schedule, noise)
        solve(denoiser, start, record, self.solver, condition, analytic_first=self.analytic_first)
        return record.discretization(len(noise))

    def _plan(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, index: Tensor | None
    ) -> Plan:
        if tuple(noise.shape[1:]) != tuple(denoiser.shape):
            raise ValueError(
                f"noise must be (batch, *{tuple(denoiser.shape)}), got {tuple(noise.shape)}"
            )
        _check_batch(condition, len(noise))
        _check_policy(self.policy, denoiser)
        plan = self.policy(noise, condition.features, index)
        if isinstance(plan, Discretization):
            _check_plan(plan, self.solver, len(noise))
        if isinstance(plan, Attentive):
            plan.attach(denoiser, analytic_first=self.analytic_first)
        return plan


def _check_policy(policy: Policy, denoiser: Denoiser) -> None:
    """Times of one schedule would mean other noise levels in another, and samples would be silently
    wrong.
    """
    own, native, shape = (getattr(policy, name, None) for name in ("schedule", "native", "shape"))
    if own is not None and not same_schedule(own, denoiser.schedule):
        raise ValueError(
            f"denoiser must have the schedule of the sampler, {own}, got {denoiser.schedule}"
        )
    if native is not None and native is not denoiser.native:
        raise ValueError(
            f"denoiser must answer in the sampler's form, {native.value}, got {denoiser.native.value}"
        )
    if shape is not None and tuple(shape) != tuple(denoiser.shape):
        raise ValueError(
            f"denoiser must have the shape of the sampler, {tuple(shape)}, got {tuple(denoiser.shape)}"
        )
    if isinstance(policy, Fixed):  # knows only times
        policy.plan.check(denoiser.schedule).check_start(denoiser.schedule)


def _check_plan(plan: Discretization, solver: Solver, batch: int) -> None:
    """What the loop would refuse less clearly, or leave out."""
    if len(plan.tau) not in (1, batch):
        raise ValueError(
            f"tau must have one row, or one for each of the {batch} samples, got {len(plan.tau)}"
        )
    if plan.weights is not None and plan.weights.shape[2] > solver.memory:
        raise ValueError(
            f"weights must correct at most the {solver.memory} answers that a step of {solver} uses, "
            f"got {plan.weights.shape[2]}"
        )


def _check_batch(condition: Condition, batch: int) -> None:
    """One row of everything for each sample; torch would share a single one silently."""
    if not isinstance(condition, Condition):
        raise ValueError(
            f"condition must be a Condition, UNCONDITIONAL if there is none, got {condition!r}"
        )
    parts = {f"inputs[{name!r}]": value for name, value in condition.inputs.items()}
    if condition.features is not None:
        parts["features"] = condition.features
    for name, value in parts.items():
        if tuple(value.shape[:1]) != (batch,):
            raise ValueError(
                f"condition.{name} must have a row for each of the {batch} samples of noise, got {tuple(value.shape)}"
            )


@dataclass
class _Record:
    """Passes a plan's decisions on and remembers them."""

    plan: Plan
    first: tuple[Tensor, Tensor] | None = None
    decisions: list[Decision] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.plan.steps

    @property
    def keep(self) -> Keep:
        return self.plan.keep

    def start(self) -> tuple[Tensor, Tensor]:
        self.first = self.plan.start()
        return self.first

    def decide(self, k: int, x: Tensor, answer: Tensor) -> Decision:
        self.decisions.append(self.plan.decide(k, x, answer))
        return self.decisions[-1]

    def discretization(self, batch: int) -> Discretization:
        """Side by side, one row a sample; a step whose weights were left as they are counts as not
        corrected.
        """
        assert self.first is not None
        tau, dtau = ([v] for v in self.first)
        tau += [d.tau for d in self.decisions]
        dtau += [d.dtau for d in self.decisions[:-1]]
        gamma = [d.gamma for d in self.decisions]
        columns = {"tau": tau, "dtau": dtau, "gamma": gamma}
        if any(d.stretch is not None for d in self.decisions):
            columns["stretch"] = [
                torch.ones_like(d.gamma) if d.stretch is None else d.stretch for d in self.decisions
            ]
        if order := max(0 if d.weights is None else d.weights.shape[1] for d in self.decisions):
            none = gamma[0].new_zeros(1, order)
            columns["weights"] = [none if d.weights is None else d.weights for d in self.decisions]
        rows = {name: _side_by_side(parts, batch) for name, parts in columns.items()}
        return Discretization(**rows, keep=self.keep)


def _side_by_side(parts: list[Tensor], batch: int) -> Tensor:
    return torch.stack([part.expand(batch, *part.shape[1:]) for part in parts], dim=1)
