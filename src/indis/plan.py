r"""Plans: where to step, at which time to ask, and how to use the answer.

A discretization of N steps is :math:`\xi = \{\tau, \Delta\tau, \gamma\}`. Step k asks the denoiser
at :math:`\tau_k + \Delta\tau_k`, multiplies its native output by :math:`\gamma_k` and integrates
from :math:`\tau_k` to :math:`\tau_{k+1}` (paper, Eq. 5). Columns are in sampling order: column 0 is
the first thing that happens, the paper's n = N.

A plan is asked step by step. An open-loop plan (:class:`Discretization`) is known before the first
evaluation; a closed-loop plan may look at the state and at the answer before it decides.

Plans are float64 tensors on the CPU, wherever the samples are: they are tiny, a coefficient is a
difference of nearly equal numbers, and some devices have no float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from indis.checks import require_choice
from indis.noise import NoiseSchedule, is_start_time
from indis.numerics import TIME_DTYPE

Keep = Literal["data", "answer"]  # what a time shift preserves


@dataclass(frozen=True)
class Churn:
    """Fresh noise after a step: the state returns to a noisier time before the next evaluation."""

    tau: Tensor  # (grid,), the time of the state afterwards, not below the node that was reached
    noise: Tensor  # (batch, *shape), unit variance

    def __getitem__(self, index: Tensor | slice) -> Churn:
        """Return some rows."""
        return Churn(self.tau if len(self.tau) == 1 else self.tau[index], self.noise[index])


@dataclass(frozen=True)
class Decision:
    """What a plan decides once the answer at node k is known."""

    gamma: Tensor  # (grid,), scale of the answer
    tau: Tensor  # (grid,), node k + 1
    dtau: Tensor  # (grid,), time shift of the question at node k + 1; unused after the last step
    weights: Tensor | None = None  # (grid, order), added to the solver's multistep weights
    churn: Churn | None = None
    stretch: Tensor | None = None  # (grid,), factor of the step's weights
    correction: Tensor | None = None  # (batch, *shape), added to the data that the step heads for


class Plan(Protocol):
    """What the sampling loop asks: :meth:`start`, then :meth:`decide` after each evaluation."""

    @property
    def steps(self) -> int:
        """The number N of steps."""

    @property
    def keep(self) -> Keep:
        """What a time shift preserves.

        "answer": the network's answer to the state as it stands (paper, Eq. 5). "data": its data
        prediction, for the state at the noise level of the shifted time
        (:func:`~indis.forms.shift_scales`).
        """

    @property
    def to_zero(self) -> bool:
        """Whether the last step goes to sigma = 0, that is, returns the last data prediction."""

    @property
    def needs_features(self) -> bool:
        """Whether :meth:`decide` reads features of the network."""

    def start(self) -> tuple[Tensor, Tensor]:
        """Return the first node and its time shift, each ``(grid,)``."""

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        """Decide step k.

        Args:
            k: The step.
            x: The state ``(batch, *shape)`` at node k.
            answer: The native answer ``(batch, *shape)`` as the step will use it, before gamma.
            features: Features ``(batch, size)`` of the network if the plan needs them, None where
                the answer is analytic.
        """


class PlanWrapper:
    """A plan around another plan. A subclass says what it changes; the rest is forwarded."""

    def __init__(self, inner: Plan) -> None:
        self.inner = inner
        self.steps, self.keep = inner.steps, inner.keep
        self.to_zero, self.needs_features = inner.to_zero, inner.needs_features

    def start(self) -> tuple[Tensor, Tensor]:
        """Return the first node and its time shift, each ``(grid,)``."""
        return self.inner.start()

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        """Decide step k as the inner plan does."""
        return self.inner.decide(k, x, answer, features)


@dataclass(frozen=True)
class Discretization:
    """An open-loop plan: everything is known before the first evaluation.

    Args:
        tau: Nodes ``(grid, steps + 1)``, strictly decreasing. ``grid`` is 1 for a plan that the
            whole batch shares, else the batch.
        dtau: Time shifts ``(grid, steps)``.
        gamma: Scales of the answers ``(grid, steps)``.
        weights: Additive corrections ``(grid, steps, order)`` of the solver's multistep weights in
            units of the step, newest answer first.
        stretch: Factors ``(grid, steps)`` of the corrected weights.
        keep: What a time shift preserves (:class:`Plan`).
        to_zero: Whether the last step goes to sigma = 0. The last column of ``tau`` is then the
            time of zero noise (:func:`~indis.noise.zero_time`).
        churn: Fresh noise after each step, or nothing.
        corrections: For each step ``(batch, *shape)``, added to the data prediction that the step
            heads for; or nothing.

    Raises:
        ValueError: If the shapes do not fit together, or ``keep`` is unknown.
    """

    tau: Tensor
    dtau: Tensor
    gamma: Tensor
    weights: Tensor | None = None
    stretch: Tensor | None = None
    keep: Keep = "answer"
    to_zero: bool = False
    churn: tuple[Churn | None, ...] = ()
    corrections: tuple[Tensor | None, ...] = ()

    needs_features = False

    def __post_init__(self) -> None:
        require_choice("keep", self.keep, Keep)
        for name, column in self.columns().items():
            object.__setattr__(self, name, column.to("cpu", TIME_DTYPE))
        expected = (self.tau.shape[0], self.tau.shape[-1] - 1)
        if self.tau.ndim != 2 or expected[1] < 1:
            raise ValueError(
                f"tau must be (grid, steps + 1) with steps >= 1, got {tuple(self.tau.shape)}"
            )
        given = {"dtau": self.dtau, "gamma": self.gamma, "stretch": self.stretch}
        for name, value in given.items():
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"{name} must be (grid, steps) = {expected}, got {tuple(value.shape)}"
                )
        if self.weights is not None and tuple(self.weights.shape[:2]) != expected:
            raise ValueError(
                f"weights must be (grid, steps, order), got {tuple(self.weights.shape)} for "
                f"{expected}"
            )

    @property
    def steps(self) -> int:
        """The number N of steps."""
        return self.dtau.shape[1]

    @classmethod
    def plain(cls, tau: Tensor, *, to_zero: bool = False) -> Discretization:
        """Return a grid ``(grid, steps + 1)`` without shifts and with unit scales."""
        return cls(tau, torch.zeros_like(tau[:, 1:]), torch.ones_like(tau[:, 1:]), to_zero=to_zero)

    def start(self) -> tuple[Tensor, Tensor]:
        """Return the first node and its time shift, each ``(grid,)``."""
        return self.tau[:, 0], self.dtau[:, 0]

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        """Return column k; an open-loop plan looks neither at the state nor at the answer."""
        dtau = self.dtau[:, k + 1] if k + 1 < self.steps else torch.zeros_like(self.dtau[:, k])
        weights, stretch = (None if v is None else v[:, k] for v in (self.weights, self.stretch))
        churn = self.churn[k] if self.churn else None
        correction = self.corrections[k] if self.corrections else None
        return Decision(
            self.gamma[:, k], self.tau[:, k + 1], dtau, weights, churn, stretch, correction
        )

    def __getitem__(self, index: Tensor | slice) -> Discretization:
        """Return the plans of some rows."""
        rows: dict[str, Any] = {name: column[index] for name, column in self.columns().items()}
        for name in ("churn", "corrections"):
            rows[name] = tuple(v if v is None else v[index] for v in getattr(self, name))
        return replace(self, **rows)

    def detach(self) -> Discretization:
        """Return the same numbers without history."""
        changed: dict[str, Any] = {name: v.detach() for name, v in self.columns().items()}
        return replace(self, **changed)

    def columns(self) -> dict[str, Tensor]:
        """Return the columns that are given, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def versions(self) -> list[int]:
        """Return numbers that change when a column is changed in place."""
        return [0 if v.is_inference() else v._version for v in self.columns().values()]

    def check(self, schedule: NoiseSchedule) -> Discretization:
        """Return the plan itself if its values are sound.

        Called at the borders of the library, since it reads every value.

        Raises:
            ValueError: If times do not decrease strictly, leave the schedule, or anything is not
                finite.
        """
        if not all(bool(column.isfinite().all()) for column in self.columns().values()):
            raise ValueError("a discretization must be finite, got NaN or inf")
        if not bool((self.tau.diff(dim=1) < 0).all()):
            raise ValueError(
                f"tau must decrease strictly, got {self.tau[0].tolist()} in its first row"
            )
        tau = (self.tau[:, :-1] if self.to_zero else self.tau).detach()
        low, high = float(tau.min()), float(tau.max())
        if low < schedule.t_min or high > schedule.t_max:
            raise ValueError(
                f"tau must lie in [{schedule.t_min:.10g}, {schedule.t_max:.10g}], "
                f"got [{low:.10g}, {high:.10g}]"
            )
        return self

    def check_start(self, schedule: NoiseSchedule) -> Discretization:
        """Return the plan itself if it begins at t_max, whose noise the sampler makes.

        Raises:
            ValueError: If it does not.
        """
        for first in self.tau[:, 0].tolist():
            if not is_start_time(schedule, first):
                raise ValueError(
                    f"tau must begin at t_max = {schedule.t_max:.10g}, got {first:.10g}"
                )
        return self
