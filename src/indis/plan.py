r"""Discretizations: where to step, at which time to ask, and how to scale the answer.

A discretization of N steps is :math:`\xi = \{\tau, \Delta\tau, \gamma\}`. Step k asks the denoiser
at :math:`\tau_k + \Delta\tau_k`, multiplies its native output by :math:`\gamma_k` and integrates
from :math:`\tau_k` to
:math:`\tau_{k+1}` (paper, Eq. 5). Columns are in sampling order: column 0 is the first thing that happens, the
paper's n = N.

:func:`from_logits` is Eq. 6-7 with three choices that the paper leaves open:

* N logits, not N + 1: a logit at the boundary cancels in the normalisation.
* The softmax is relative to a *base grid*: zero logits give that grid bit for bit, so an untrained network is its
base solver.
* Interval fractions have a floor, so that times stay strictly decreasing for any logits and multistep weights stay
finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from indis.checks import require_choice
from indis.noise import Domain, NoiseSchedule, is_start_time, limit_shift
from indis.numerics import TIME_DTYPE, restored

Shift = Literal["relative", "gap", "additive"]
Keep = Literal["data", "answer"]  # what a time shift leaves as it is
LOGIT_ROWS = 3  # tau, dtau, gamma


@dataclass(frozen=True)
class Churn:
    """Fresh noise after a step: the state goes back up to a noisier time before it is asked
    about.
    """

    tau: Tensor  # (grid,), where the state is afterwards, at least as noisy as the node that was reached
    noise: Tensor  # (batch, *shape), unit variance


@dataclass(frozen=True)
class Decision:
    """What is decided once the answer at node k is known: how to use it, where to go, when to ask
    next.
    """

    gamma: Tensor  # (grid,)
    tau: Tensor  # (grid,), node k + 1
    dtau: Tensor  # (grid,), of node k + 1; zero after the last step, where nothing is asked
    weights: Tensor | None = None  # (grid, order), added to the solver's multistep weights
    churn: Churn | None = None
    stretch: Tensor | None = (
        None  # (grid,), factor of the step's weights; the answers are kept as they are
    )
    extra: Tensor | None = (
        None  # (batch, *shape), added to the denoised sample that the step heads for
    )


class Plan(Protocol):
    """What the loop asks: first :meth:`start`, then :meth:`decide` once after each evaluation."""

    @property
    def steps(self) -> int:
        """The number N of steps."""

    @property
    def keep(self) -> Keep:
        """What a time shift leaves as it is.

        "answer": the network's answer to the state as it stands (Eq. 5). "data": its data
        prediction for the same picture with another amount of noise (:func:`~indis.denoise.told`,
        :func:`~indis.denoise.held`).
        """

    def start(self) -> tuple[Tensor, Tensor]:
        """The first node and its time shift, each ``(grid,)``."""

    def decide(self, k: int, x: Tensor, answer: Tensor) -> Decision:
        """What to do with the native ``answer`` at state ``x``, node k, as it is used there but for
        gamma.
        """


@dataclass(frozen=True)
class Discretization:
    """An open-loop plan: everything is known before the first evaluation.

    ``grid`` is 1 for a plan that the whole batch shares, else the batch. ``weights`` (optional) are
    additive corrections of the solver's multistep weights in units of the step, newest answer
    first; ``stretch`` (optional) multiplies the corrected weights. ``keep`` is that of
    :class:`Plan`. Columns become float64.

    Raises:
        ValueError: if the shapes do not fit together, or ``keep`` is unknown.
    """

    tau: Tensor  # (grid, steps + 1), strictly decreasing
    dtau: Tensor  # (grid, steps)
    gamma: Tensor  # (grid, steps)
    weights: Tensor | None = None  # (grid, steps, order)
    stretch: Tensor | None = None  # (grid, steps)
    keep: Keep = "answer"

    def __post_init__(self) -> None:
        require_choice("keep", self.keep, Keep)
        for name, column in self.columns().items():
            object.__setattr__(self, name, column.to(TIME_DTYPE))
        expected = (self.tau.shape[0], self.tau.shape[-1] - 1)
        if self.tau.ndim != 2 or expected[1] < 1:
            raise ValueError(
                f"tau must be (grid, steps + 1) with steps >= 1, got {tuple(self.tau.shape)}"
            )
        for name, value in (("dtau", self.dtau), ("gamma", self.gamma), ("stretch", self.stretch)):
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"{name} must be (grid, steps) = {expected}, got {tuple(value.shape)}"
                )
        if self.weights is not None and tuple(self.weights.shape[:2]) != expected:
            raise ValueError(
                f"weights must be (grid, steps, order), got {tuple(self.weights.shape)} for {expected}"
            )

    @property
    def steps(self) -> int:
        """The number N of intervals."""
        return self.dtau.shape[1]

    @classmethod
    def plain(cls, tau: Tensor) -> Discretization:
        """A grid without shifts and with unit scales."""
        return cls(tau, torch.zeros_like(tau[:, 1:]), torch.ones_like(tau[:, 1:]))

    def start(self) -> tuple[Tensor, Tensor]:
        """The first node and its time shift, each ``(grid,)``."""
        return self.tau[:, 0], self.dtau[:, 0]

    def decide(self, k: int, x: Tensor, answer: Tensor) -> Decision:
        """Read column k; an open-loop plan looks neither at the state nor at the answer."""
        dtau = self.dtau[:, k + 1] if k + 1 < self.steps else torch.zeros_like(self.dtau[:, k])
        weights, stretch = (None if v is None else v[:, k] for v in (self.weights, self.stretch))
        return Decision(self.gamma[:, k], self.tau[:, k + 1], dtau, weights, stretch=stretch)

    def __getitem__(self, index: Tensor | slice) -> Discretization:
        """The plans of some rows."""
        return self._each(lambda column: column[index])

    def detach(self) -> Discretization:
        """The same numbers without history."""
        return self._each(Tensor.detach)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Discretization:
        changed: dict[str, Any] = {name: change(column) for name, column in self.columns().items()}
        return replace(self, **changed)

    def columns(self) -> dict[str, Tensor]:
        """What is given of its columns, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def check(self, schedule: NoiseSchedule) -> Discretization:
        """Itself, if its values are sound; called at the borders of the library, since it reads
        every value.

        Raises:
            ValueError: if times do not decrease strictly, leave the schedule, or anything is not
                finite.
        """
        if not all(bool(column.isfinite().all()) for column in self.columns().values()):
            raise ValueError("a discretization must be finite, got NaN or inf")
        if not bool((self.tau.diff(dim=1) < 0).all()):
            raise ValueError(
                f"tau must decrease strictly, got {self.tau[0].tolist()} in its first row"
            )
        tau = self.tau.detach()
        low, high = float(tau.min()), float(tau.max())
        if low < schedule.t_min or high > schedule.t_max:
            raise ValueError(
                f"tau must lie in [{schedule.t_min:g}, {schedule.t_max:g}], got [{low:g}, {high:g}]"
            )
        return self

    def check_start(self, schedule: NoiseSchedule) -> Discretization:
        """Itself, if it begins where sampling does: the noise that it is given is always that of
        t_max.

        Raises:
            ValueError: if it does not.
        """
        for first in self.tau[:, 0].tolist():
            if not is_start_time(schedule, first):
                raise ValueError(f"tau must begin at t_max = {schedule.t_max:g}, got {first:g}")
        return self


@dataclass(frozen=True)
class Bounds:
    """How far logits may move a discretization from its base grid.

    ``dtau`` and ``gamma`` are b in b tanh(o / 2); zero removes that freedom exactly. ``weights`` is
    the same for the corrections of the multistep weights. ``shift`` says what ``dtau`` is a
    fraction of: "relative" moves log-SNR by up to b (for EDM this multiplies sigma by up to e^b),
    "gap" moves by up to b of the interval that follows, "additive" is the paper's form in units of
    time. ``domain`` is where the softmax lives. ``keep`` is what a time shift leaves as it is
    (:class:`Plan`); with "data", ``gamma`` is what changes beyond that. ``track``, if given, is the
    form in which the solver keeps slopes: nodes then lie where the corrected weights lead (see
    :mod:`indis.policies.tracking`).

    Sizes seen in peers' learned values: relative shifts up to 0.25, scales 0.6 ... 1.3 (DyWeight's
    released weights).

    Raises:
        ValueError: if a bound is negative, gamma could reach zero, a gap shift could pass the next
            node, or shift,
            domain or keep is unknown.
    """

    dtau: float = 0.5
    gamma: float = 0.5
    weights: float = 0.0
    shift: Shift = "relative"
    domain: Domain = "log_snr"
    keep: Keep = "answer"
    track: str | None = None
    # Least fraction of an interval on average: each keeps floor * steps of its base. 1e-4 of EDM's
    # range is 0.1 % of sigma.
    floor: float = 1e-4

    def __post_init__(self) -> None:
        for name, low, high in (
            ("dtau", 0, float("inf")),
            ("gamma", 0, 1),
            ("weights", 0, float("inf")),
            ("floor", 0, 0.01),
        ):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name} must be in [{low}, {high}), got {getattr(self, name)}")
        if self.shift == "gap" and self.dtau >= 1:
            raise ValueError(f"dtau must be below 1 for shift 'gap', got {self.dtau}")
        require_choice("shift", self.shift, Shift)
        require_choice("domain", self.domain, Domain)
        require_choice("keep", self.keep, Keep)
        if self.track is not None:
            require_choice("track", self.track, Literal["noise", "velocity"])

    @classmethod
    def natural(cls, schedule: NoiseSchedule, **fields: Any) -> Bounds:
        """Bounds in the terms that suit a schedule: log-SNR where sigma spans decades, local time
        for flows.
        """
        shift: Shift = "relative" if schedule.domain == "log_snr" else "gap"
        return replace(cls(shift=shift, domain=schedule.domain), **fields)


def coordinate(
    schedule: NoiseSchedule, domain: Domain
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The way from a time into a domain, and back."""
    return (schedule.log_snr, schedule.time) if domain == "log_snr" else (_same, _same)


# Nodes and corrections of the weights in, nodes and stretch out.
Follow = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def from_logits(
    logits: Tensor,
    base: Tensor,
    schedule: NoiseSchedule,
    bounds: Bounds,
    follow: Follow | None = None,
) -> Discretization:
    """The discretization of ``logits`` ``(grid, 3 + order, steps)`` around ``base`` ``(1, steps +
    1)`` (Eq. 6-7).

    Row 0 moves tau, row 1 Dtau, row 2 gamma; further rows, if any, are corrections of the multistep
    weights, newest first; ``follow`` may then move the nodes to where the weights lead. Times and
    coefficients are float64 whatever the dtype of the logits.
    """
    logits = logits.to(TIME_DTYPE)
    tau, stretch = _nodes(logits[:, 0], base, schedule, bounds), None
    extra = logits[:, LOGIT_ROWS:]
    weights = _bounded(extra, bounds.weights).movedim(1, 2) if extra.shape[1] else None
    if follow is not None and weights is not None:
        tau, stretch = follow(tau, weights)
    dtau = _shifts(_bounded(logits[:, 1], bounds.dtau), tau, schedule, bounds)
    gamma = 1 + _bounded(logits[:, 2], bounds.gamma)
    return Discretization(tau, dtau, gamma, weights, stretch, bounds.keep)


def restart(base: Tensor, k: int, tau: Tensor, schedule: NoiseSchedule, bounds: Bounds) -> Tensor:
    """What remains of a base grid ``(1, steps + 1)`` from node k on, when that node came to lie at
    ``tau`` ``(grid,)``.

    ``(grid, steps + 1 - k)``: the intervals keep their proportions in the bounds' domain, and the
    end stays.
    """
    to, back = coordinate(schedule, bounds.domain)
    planned, level = to(base[:, k:]), to(tau)[:, None]
    passed = (planned - planned[:, :1]) / (planned[:, -1:] - planned[:, :1])
    inside = back(level + passed[:, 1:-1] * (planned[:, -1:] - level))
    # As in _nodes: where nothing has moved the last bit is restored, gradient kept.
    still = tau[:, None] == base[:, k : k + 1]
    inside = restored(inside, base[:, k + 1 : -1], still)
    return torch.cat([tau[:, None], inside, base[:, -1:].expand(len(inside), 1)], dim=1)


def _bounded(logits: Tensor, bound: float) -> Tensor:
    """b tanh(o / 2)."""
    return bound * torch.tanh(logits / 2)


def _nodes(logits: Tensor, base: Tensor, schedule: NoiseSchedule, bounds: Bounds) -> Tensor:
    """Cumulated interval fractions: those of the base grid, reweighed. Zero logits give the base
    grid itself.
    """
    to, back = coordinate(schedule, bounds.domain)
    level = to(base)
    start, span = level[:, :1], level[:, -1:] - level[:, :1]
    fractions = level.diff(dim=1) / span
    kept = bounds.floor * fractions.shape[1]
    share = (1 - kept) * torch.softmax(fractions.log() + logits, dim=1) + kept * fractions
    inside = back(start + span * share.cumsum(1)[:, :-1])
    # The way into the domain and back rounds; where nothing has moved, the last bit is restored,
    # gradient kept.
    still = (logits == 0).all(dim=1, keepdim=True)
    inside = restored(inside, base[:, 1:-1], still)
    rows = len(inside)
    return torch.cat([base[:, :1].expand(rows, 1), inside, base[:, -1:].expand(rows, 1)], dim=1)


def _shifts(amount: Tensor, tau: Tensor, schedule: NoiseSchedule, bounds: Bounds) -> Tensor:
    """Dtau in units of time; positive asks at a noisier time."""
    asked = tau[:, :-1]
    if bounds.shift == "relative":
        level = schedule.log_snr(asked)
        shift = schedule.time(level - amount) - schedule.time(level)
    else:
        shift = amount * (asked - tau[:, 1:]) if bounds.shift == "gap" else amount
    return limit_shift(schedule, asked, shift)


def _same(t: Tensor) -> Tensor:
    return t
