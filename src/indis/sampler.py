"""A sampler: a policy and a solver that turn noise into samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indis.denoise import UNCONDITIONAL, Condition, Denoiser, FeatureDenoiser
from indis.noise import prior
from indis.plan import Decision, Discretization, Plan, PlanWrapper
from indis.policies import Policy
from indis.solvers import Heun, Parallel, Solver, State, Stepper, last, solve, trajectory


@dataclass
class Sampler:
    """A policy on a solver.

    Args:
        policy: The policy.
        solver: The solver.
        analytic_first: Whether the first network call is replaced by its closed form (AFS).

    Raises:
        ValueError: If no network call is left, or the policy corrects more multistep weights than
            the solver has.
    """

    policy: Policy
    solver: Solver
    analytic_first: bool = False

    def __post_init__(self) -> None:
        if self.nfe < 1:
            raise ValueError(
                f"steps must be above {self.policy.steps} with an analytic first step: no call is "
                "left"
            )
        _check_order(self.policy.order, self.solver)

    def at(self, steps: int) -> Sampler:
        """Return the sampler for ``steps`` steps, of a policy for several numbers of them.

        The two share their parameters.

        Raises:
            ValueError: If the policy was not made for that number.
        """
        return Sampler(self.policy.at(steps), self.solver, self.analytic_first)

    def to(self, device: torch.device | str) -> Sampler:
        """Move the policy's networks to a device and return the sampler itself."""
        self.policy.to(device)
        return self

    @property
    def nfe(self) -> int:
        """The number of network evaluations a sample."""
        return self._evaluations(self.solver.nfe(self.policy.steps))

    @property
    def depth(self) -> int:
        """The number of consecutive evaluations, below :attr:`nfe` if some can run in parallel."""
        count = self.solver.depth if isinstance(self.solver, Parallel) else self.solver.nfe
        return self._evaluations(count(self.policy.steps))

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        condition: Condition = UNCONDITIONAL,
        *,
        index: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Draw samples.

        Args:
            denoiser: The denoiser, on the device of noise, condition and policy
                (:func:`~indis.denoise.to_device_of`).
            noise: Unit noise ``(batch, *shape)``.
            condition: The condition of the batch.
            index: Numbers ``(batch,)`` of the samples in their data set, for per-sample policies.
            recompute: Whether network calls are recomputed in the backward pass.

        Returns:
            Samples ``(batch, *shape)`` in the denoiser's space, in the dtype of ``noise``.

        Raises:
            ValueError: If the noise does not fit the denoiser or the condition, the policy was
                made for another schedule or form, or the denoiser lacks what the policy reads.
        """
        return last(self.trajectory(denoiser, noise, condition, index=index, recompute=recompute))

    def trajectory(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        condition: Condition = UNCONDITIONAL,
        *,
        index: Tensor | None = None,
        recompute: bool = False,
    ) -> Iterator[State]:
        """Yield the state after each step; the last one is what a call returns.

        Arguments and errors are those of a call.
        """
        plan = self._plan(denoiser, noise, condition, index)
        start = prior(denoiser.schedule, noise)
        options = {"analytic_first": self.analytic_first, "recompute": recompute}
        return trajectory(denoiser, start, plan, self.solver, condition, **options)

    def stepper(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition = UNCONDITIONAL
    ) -> Stepper:
        """Return a stepper for a loop that calls the network itself.

        Of the denoiser only schedule, shape, native form and device are used. Arguments and errors
        are those of a call.
        """
        plan = self._plan(denoiser, noise, condition, None)
        start, first = prior(denoiser.schedule, noise), self.analytic_first
        schedule, native = denoiser.schedule, denoiser.native
        return Stepper(schedule, native, self.solver, plan, start, analytic_first=first)

    def realized_plan(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition = UNCONDITIONAL
    ) -> Discretization:
        """Return the plan that each sample ends up with, one row a sample.

        Closed-loop decisions, churn and corrections of the picture are included, so solving it
        gives the same samples. It takes a whole run unless the plan is known in advance. Arguments
        and errors are those of a call.
        """
        plan = self._plan(denoiser, noise, condition, None)
        if isinstance(plan, Discretization):
            return plan
        record = _Recorder(plan)
        start = prior(denoiser.schedule, noise)
        first = self.analytic_first
        solve(denoiser, start, record, self.solver, condition, analytic_first=first)
        return record.discretization(len(noise))

    def _evaluations(self, of_solver: int) -> int:
        # A last step to sigma = 0 has no trial evaluation at its end.
        saved = self.policy.to_zero and isinstance(self.solver, Heun)
        return of_solver - saved - self.analytic_first

    def _plan(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, index: Tensor | None
    ) -> Plan:
        shape = tuple(denoiser.shape)
        if tuple(noise.shape[1:]) != shape:
            raise ValueError(f"noise must be (batch, *{shape}), got {tuple(noise.shape)}")
        if not noise.is_floating_point():
            raise ValueError(f"noise must be of a floating dtype, got {noise.dtype}")
        _check_batch(condition, len(noise))
        self.policy.check(denoiser)
        plan = self.policy(noise, condition.features, index)
        if isinstance(plan, Discretization):
            _check_plan(plan, self.solver, len(noise))
        if plan.needs_features and not isinstance(denoiser, FeatureDenoiser):
            raise ValueError(
                f"denoiser must have with_features(), which this policy reads and "
                f"{denoiser.name!r} lacks"
            )
        return plan


def _check_order(order: int, solver: Solver) -> None:
    if order > solver.memory:
        raise ValueError(
            f"weights must correct at most the {solver.memory} answers that a step of {solver} "
            f"uses, got {order}"
        )


def _check_plan(plan: Discretization, solver: Solver, batch: int) -> None:
    """Refuse what the loop would refuse less clearly, or leave out."""
    if len(plan.tau) not in (1, batch):
        raise ValueError(
            f"tau must have one row, or one for each of the {batch} samples, got {len(plan.tau)}"
        )
    if plan.weights is not None:
        _check_order(plan.weights.shape[2], solver)


def _check_batch(condition: Condition, batch: int) -> None:
    """Require a row for each sample; torch would share a single one silently."""
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
                f"condition.{name} must have a row for each of the {batch} samples of noise, got "
                f"{tuple(value.shape)}"
            )


class _Recorder(PlanWrapper):
    """A plan that remembers the decisions of the plan inside, for one run."""

    def __init__(self, inner: Plan) -> None:
        super().__init__(inner)
        self.first: tuple[Tensor, Tensor] | None = None
        self.decisions: list[Decision] = []

    def start(self) -> tuple[Tensor, Tensor]:
        """Begin a new record."""
        self.first, self.decisions = self.inner.start(), []
        return self.first

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        """Decide as the inner plan does, and remember it."""
        self.decisions.append(self.inner.decide(k, x, answer, features))
        return self.decisions[-1]

    def discretization(self, batch: int) -> Discretization:
        """Return the recorded run as an open-loop plan with one row a sample.

        Solving it gives the recorded samples, churn and corrections included.
        """
        assert self.first is not None
        tau, dtau = ([value] for value in self.first)
        tau += [d.tau for d in self.decisions]
        dtau += [d.dtau for d in self.decisions[:-1]]
        gamma = [d.gamma for d in self.decisions]
        columns = {"tau": tau, "dtau": dtau, "gamma": gamma}
        if any(d.stretch is not None for d in self.decisions):
            plain = torch.ones_like(gamma[0])
            columns["stretch"] = [plain if d.stretch is None else d.stretch for d in self.decisions]
        if order := max(0 if d.weights is None else d.weights.shape[1] for d in self.decisions):
            none = gamma[0].new_zeros(1, order)
            columns["weights"] = [none if d.weights is None else d.weights for d in self.decisions]
        rows: dict[str, Any] = {
            name: torch.stack([part.cpu().expand(batch, *part.shape[1:]) for part in parts], dim=1)
            for name, parts in columns.items()
        }
        for name, field in (("churn", "churn"), ("corrections", "correction")):
            parts = tuple(getattr(d, field) for d in self.decisions)
            rows[name] = parts if any(part is not None for part in parts) else ()
        return Discretization(**rows, keep=self.keep, to_zero=self.to_zero)
