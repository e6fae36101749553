r"""Plans: where to step, at which time to ask, and how to use the answer.

A discretization of N steps is :math:`\xi = \{\tau, \Delta\tau, \gamma\}`. Step k asks the denoiser
at :math:`\tau_k + \Delta\tau_k`, multiplies its native output by :math:`\gamma_k` and integrates
from :math:`\tau_k` to :math:`\tau_{k+1}` (paper, Eq. 5). Columns are in sampling order: column 0 is
the first thing that happens, the paper's n = N.

A plan is asked step by step. An open-loop plan (:class:`Discretization`) is known before the first
evaluation; a closed-loop plan may look at the state and at the answer before it decides.

:func:`from_logits` is Eq. 6-7 with three choices that the paper leaves open:

* There are N logits, not N + 1, because a logit at the boundary cancels in the normalisation.
* The softmax is relative to a *base grid*: zero logits give that grid bit for bit, so an untrained
  network is its base solver.
* Interval fractions have a floor, so times stay strictly decreasing for any logits and multistep
  weights stay finite.

Plans are float64 tensors on the CPU, wherever the samples are: they are tiny, a coefficient is a
difference of nearly equal numbers, and some devices have no float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from indis.checks import require_choice
from indis.noise import Domain, NoiseSchedule, is_start_time, limit_shift, shifted
from indis.numerics import TIME_DTYPE, restored

Shift = Literal["relative", "gap", "additive"]
Keep = Literal["data", "answer"]  # what a time shift preserves
LOGIT_ROWS = 3  # tau, dtau, gamma


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
        (:func:`~indis.denoise.shift_scales`).
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


@dataclass(frozen=True)
class Bounds:
    """How far logits may move a discretization from its base grid.

    Sizes seen in peers' learned values: relative shifts up to 0.25, scales 0.6 ... 1.3 (DyWeight's
    released weights).

    Args:
        dtau: b in b tanh(o / 2) for time shifts; zero removes them exactly.
        gamma: The same for scales, around 1.
        weights: The same for corrections of the multistep weights.
        shift: The unit of ``dtau``. "relative" moves log-SNR by up to b (for EDM sigma is
            multiplied by up to e^b), "gap" moves by up to b of the interval that follows,
            "additive" is the paper's form in units of time.
        domain: The coordinate in which the softmax divides the range.
        keep: What a time shift preserves (:class:`Plan`). With "data", ``gamma`` is the change
            beyond that.
        floor: The least interval: each keeps ``floor * steps`` of its share of the base grid.

    Raises:
        ValueError: If a bound is negative, gamma could reach zero, a gap shift could pass the next
            node, or shift, domain or keep is unknown.
    """

    dtau: float = 0.5
    gamma: float = 0.5
    weights: float = 0.0
    shift: Shift = "relative"
    domain: Domain = "log_snr"
    keep: Keep = "answer"
    floor: float = 1e-4  # 0.1 % of sigma on EDM's range

    def __post_init__(self) -> None:
        limits = {"dtau": float("inf"), "gamma": 1, "weights": float("inf"), "floor": 0.01}
        for name, high in limits.items():
            if not 0 <= getattr(self, name) < high:
                raise ValueError(f"{name} must be in [0, {high}), got {getattr(self, name)}")
        if self.shift == "gap" and self.dtau >= 1:
            raise ValueError(f"dtau must be below 1 for shift 'gap', got {self.dtau}")
        require_choice("shift", self.shift, Shift)
        require_choice("domain", self.domain, Domain)
        require_choice("keep", self.keep, Keep)

    @classmethod
    def natural(cls, schedule: NoiseSchedule, **fields: Any) -> Bounds:
        """Return bounds in the terms of a schedule, changed by ``fields``.

        Shifts are relative where sigma spans decades, and a share of the interval for flows.
        """
        shift: Shift = "relative" if schedule.domain == "log_snr" else "gap"
        return replace(cls(shift=shift, domain=schedule.domain), **fields)


def coordinate(
    schedule: NoiseSchedule, domain: Domain
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the maps from time into a domain and back."""
    if domain == "log_snr":
        return schedule.log_snr, schedule.time
    return (lambda t: t), (lambda t: t)


def from_logits(
    logits: Tensor, base: Tensor, schedule: NoiseSchedule, bounds: Bounds, *, to_zero: bool = False
) -> Discretization:
    """Turn logits into a discretization around a base grid (paper, Eq. 6-7).

    Args:
        logits: ``(grid, 3 + order, steps)``. Row 0 moves tau, row 1 Dtau, row 2 gamma; further
            rows are corrections of the multistep weights, newest first.
        base: The base grid ``(1, steps + 1)``.
        schedule: The noise schedule.
        bounds: How far each logit may move its number.
        to_zero: Whether the last step of ``base`` goes to sigma = 0; that step stays.

    Returns:
        The plan, float64 whatever the dtype of the logits.
    """
    logits, base = logits.to("cpu", TIME_DTYPE), base.to("cpu", TIME_DTYPE)
    inner = base.shape[1] - 1 - to_zero  # intervals that end at positive noise
    tau = _nodes(logits[:, 0, :inner], base[:, : inner + 1], schedule, bounds)
    if to_zero:
        tau = torch.cat([tau, base[:, -1:].expand(len(tau), 1)], dim=1)
    extra = logits[:, LOGIT_ROWS:]
    weights = _bounded(extra, bounds.weights).movedim(1, 2) if extra.shape[1] else None
    dtau = _shifts(_bounded(logits[:, 1], bounds.dtau), tau, schedule, bounds)
    gamma = 1 + _bounded(logits[:, 2], bounds.gamma)
    return Discretization(tau, dtau, gamma, weights, keep=bounds.keep, to_zero=to_zero)


def restart(
    base: Tensor,
    k: int,
    tau: Tensor,
    schedule: NoiseSchedule,
    bounds: Bounds,
    *,
    to_zero: bool = False,
) -> Tensor:
    """Return the rest of a base grid from node k on, when that node came to lie elsewhere.

    Intervals keep their proportions in the bounds' domain, and the end stays.

    Args:
        base: The base grid ``(1, steps + 1)``.
        k: The node.
        tau: Where it lies now, ``(grid,)``.
        schedule: The noise schedule.
        bounds: The bounds, for their domain.
        to_zero: Whether the last step of ``base`` goes to sigma = 0.

    Returns:
        The nodes ``(grid, steps + 1 - k)``.
    """
    base, tau = base.to("cpu", TIME_DTYPE), tau.to("cpu", TIME_DTYPE)
    first, tail = tau[:, None], base[:, -1:].expand(len(tau), 1)
    last = base.shape[1] - 1 - to_zero
    if k >= last:  # nothing is left but the step to sigma = 0
        return torch.cat([first, tail], dim=1)
    to, back = coordinate(schedule, bounds.domain)
    planned, level = to(base[:, k : last + 1]), to(tau)[:, None]
    passed = (planned - planned[:, :1]) / (planned[:, -1:] - planned[:, :1])
    inside = back(level + passed[:, 1:-1] * (planned[:, -1:] - level))
    # As in _nodes: where nothing has moved the last bit is restored, gradient kept.
    inside = restored(inside, base[:, k + 1 : last], first == base[:, k : k + 1])
    end = base[:, last : last + 1].expand(len(inside), 1)
    return torch.cat([first, inside, end] + [tail] * to_zero, dim=1)


def _bounded(logits: Tensor, bound: float) -> Tensor:
    """b tanh(o / 2)."""
    return bound * torch.tanh(logits / 2)


def _nodes(logits: Tensor, base: Tensor, schedule: NoiseSchedule, bounds: Bounds) -> Tensor:
    """Reweigh the interval fractions of the base grid. Zero logits give the base grid itself."""
    to, back = coordinate(schedule, bounds.domain)
    level = to(base)
    start, span = level[:, :1], level[:, -1:] - level[:, :1]
    fractions = level.diff(dim=1) / span
    kept = bounds.floor * fractions.shape[1]
    share = (1 - kept) * torch.softmax(fractions.log() + logits, dim=1) + kept * fractions
    inside = back(start + span * share.cumsum(1)[:, :-1])
    # The way into the domain and back rounds. Where nothing has moved, the last bit is restored.
    still = (logits == 0).all(dim=1, keepdim=True)
    inside = restored(inside, base[:, 1:-1], still)
    rows = len(inside)
    return torch.cat([base[:, :1].expand(rows, 1), inside, base[:, -1:].expand(rows, 1)], dim=1)


def _shifts(amount: Tensor, tau: Tensor, schedule: NoiseSchedule, bounds: Bounds) -> Tensor:
    """Dtau in units of time; positive asks at a noisier time."""
    asked = tau[:, :-1]
    if bounds.shift == "relative":
        shift = shifted(schedule, asked, amount) - asked
    else:
        shift = amount * (asked - tau[:, 1:]) if bounds.shift == "gap" else amount
    return limit_shift(schedule, asked, shift)
