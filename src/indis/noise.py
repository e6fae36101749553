r"""Noise schedules: what a time t means.

A noisy sample is :math:`x_t = \alpha(t) x_0 + \sigma(t) \epsilon`. A schedule is the pair
:math:`(\alpha, \sigma)` on ``[t_min, t_max]`` together with the log signal-to-noise ratio
:math:`\lambda = \log(\alpha / \sigma)`, decreasing in t, and its inverse. Every method is
elementwise, differentiable, keeps dtype and shape, and never looks at a time's value to choose a
branch, so each sample of a batch may have its own clock.

==============  =======================================  =====================================
schedule        :math:`\alpha, \sigma`                   used by
==============  =======================================  =====================================
EDM             1, t                                     EDM (Karras et al., 2022), VE
RectifiedFlow   1 - t, t                                 FLUX, SD3, LTX; flow matching OT
LinearVP        :math:`\exp(-I/2)`, linear beta          score SDE (Song et al., 2021)
ScaledLinearVP  :math:`\exp(-I/2)`, linear sqrt(beta)    latent diffusion, continuous in time
DiscreteVP      table of 1000 steps, interpolated        Stable Diffusion 1.x/2.x, SDXL
TableVP         any such table, interpolated             cosine or trained betas
==============  =======================================  =====================================

where :math:`I(t) = \int_0^t \beta`.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from indis.checks import require_choice
from indis.numerics import TIME_DTYPE

Domain = Literal["time", "log_snr"]
Spacing = Literal["linear", "scaled_linear"]


@runtime_checkable
class NoiseSchedule(Protocol):
    """The contract of a noise schedule; all methods are elementwise on tensors of any shape.

    Two attributes are optional. ``limit`` is the last time at which a network is defined (see
    :func:`limit_shift`), infinity if absent. ``zero_time`` is the time that stands for sigma = 0
    (see :func:`zero_time`), 0 if absent.
    """

    @property
    def t_min(self) -> float:
        """The last time of sampling, t_0 in the paper."""

    @property
    def t_max(self) -> float:
        """The first time of sampling, T in the paper."""

    @property
    def domain(self) -> Domain:
        """Where equal steps are natural: log-SNR if sigma spans decades, time for flows."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data."""

    def sigma(self, t: Tensor) -> Tensor:
        """The factor of the noise."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha / sigma)."""

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`."""


def _check_times(
    schedule: NoiseSchedule, *, above_zero: bool = False, high: float = sys.float_info.max
) -> None:
    """Refuse times out of order or out of [0, high]; with ``above_zero`` t_min must exceed 0."""
    first = schedule.t_min > 0 if above_zero else schedule.t_min >= 0
    if not (first and schedule.t_min < schedule.t_max <= high):
        least = "0 < t_min" if above_zero else "0 <= t_min"
        most = f" <= {high:g}" if high < sys.float_info.max else ""
        given = f"{schedule.t_min:g} and {schedule.t_max:g}"
        raise ValueError(f"times must satisfy {least} < t_max{most}, got {given}")
    require_choice("domain", schedule.domain, Domain)


def _check_betas(first: float, last: float, most: float = math.inf) -> None:
    """Pass if noise is added faster and faster."""
    if not 0 < first < last < most:
        bound = "" if most == math.inf else f" < {most:g}"
        raise ValueError(f"betas must satisfy 0 < first < last{bound}, got {first:g} and {last:g}")


@dataclass(frozen=True)
class EDM:
    """Variance exploding with sigma = t (Karras et al., 2022, Table 1).

    Raises:
        ValueError: unless 0 < t_min < t_max.
    """

    t_min: float = 0.002
    t_max: float = 80.0
    domain: Domain = "log_snr"

    def __post_init__(self) -> None:
        _check_times(self, above_zero=True)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def log_snr(self, t: Tensor) -> Tensor:
        return -t.log()

    def time(self, log_snr: Tensor) -> Tensor:
        return (-log_snr).exp()


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths from data at t = 0 to noise at t = 1 (Liu et al., 2022; Lipman et al., 2023).

    Raises:
        ValueError: unless 0 <= t_min < t_max <= 1.
    """

    limit: ClassVar[float] = 1.0

    t_min: float = 0.0
    t_max: float = 1.0
    domain: Domain = "time"

    def __post_init__(self) -> None:
        _check_times(self, high=self.limit)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def log_snr(self, t: Tensor) -> Tensor:
        # Both ends are legal times of a flow, so the logarithm is kept finite there.
        return (1 - t).clamp_min(_TINY).log() - t.clamp_min(_TINY).log()

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr)


_TINY = 1e-8


class _VariancePreserving(ABC):
    """alpha^2 + sigma^2 = 1 on [0, 1], given log alpha^2 = -I(t) and the inverse of I."""

    limit: ClassVar[float] = 1.0

    @abstractmethod
    def _integral(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _inverse(self, integral: Tensor) -> Tensor: ...

    def alpha(self, t: Tensor) -> Tensor:
        return (-self._integral(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._integral(t)).log() / 2

    def time(self, log_snr: Tensor) -> Tensor:
        return self._inverse(F.softplus(-2 * log_snr))


@dataclass(frozen=True)
class LinearVP(_VariancePreserving):
    """beta(t) = beta_min + t (beta_max - beta_min) on [0, 1] (Song et al., 2021, eq. 32).

    Raises:
        ValueError: unless 0 < t_min < t_max and 0 < beta_min < beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    domain: Domain = "log_snr"

    def __post_init__(self) -> None:
        _check_times(self, above_zero=True)
        _check_betas(self.beta_min, self.beta_max)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def _inverse(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        # The root of the quadratic in the form that does not cancel for small integrals.
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())


@dataclass(frozen=True)
class ScaledLinearVP(_VariancePreserving):
    """sqrt(beta) linear in t on [0, 1]; the continuous form of latent diffusion's "scaled_linear"
    betas.

    ``beta_min`` and ``beta_max`` are per unit time, 1000 times the betas of the 1000-step table.

    Raises:
        ValueError: unless 0 < t_min < t_max and 0 < beta_min < beta_max.
    """

    beta_min: float = 0.85
    beta_max: float = 12.0
    t_min: float = 1e-3
    t_max: float = 1.0
    domain: Domain = "log_snr"

    def __post_init__(self) -> None:
        _check_times(self, above_zero=True)
        _check_betas(self.beta_min, self.beta_max)

    @property
    def _slope(self) -> float:
        return self.beta_max**0.5 - self.beta_min**0.5

    def _integral(self, t: Tensor) -> Tensor:
        start = self.beta_min**0.5
        return ((start + self._slope * t) ** 3 - start**3) / (3 * self._slope)

    def _inverse(self, integral: Tensor) -> Tensor:
        start = self.beta_min**0.5
        return ((3 * self._slope * integral + start**3) ** (1 / 3) - start) / self._slope


class _Table(ABC):
    """alpha^2 + sigma^2 = 1, given log-SNR at the steps of a table."""

    zero_time: ClassVar[float] = -1.0  # the index before the first, as in DDIM with alpha_bar = 1

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """log-SNR at the integer times, ``(steps,)`` float64, decreasing."""

    @property
    def limit(self) -> float:
        """The last step of the table."""
        return len(self.table) - 1

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self.log_snr(t)).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        table = self.table.to(t.device, t.dtype)
        # The cell is chosen without gradient; the position inside it (or beyond the last one)
        # carries the gradient.
        cell = t.detach().floor().long().clamp(0, len(table) - 2)
        low, high = table[cell], table[cell + 1]
        return low + (t - cell) * (high - low)

    def time(self, log_snr: Tensor) -> Tensor:
        table = self.table.to(log_snr.device, log_snr.dtype)
        cell = torch.searchsorted(-table, -log_snr.detach().contiguous(), right=True) - 1
        cell = cell.clamp(0, len(table) - 2)
        low, high = table[cell], table[cell + 1]
        return cell + (log_snr - low) / (high - low)


@dataclass(frozen=True)
class DiscreteVP(_Table):
    """The table of a discrete-time model, made continuous by interpolating log-SNR linearly between
    its steps.

    Times are the model's own step indices 0 ... ``steps - 1`` (float); nothing is rounded, so a
    time keeps its gradient. ``spacing`` is diffusers' ``beta_schedule``: "scaled_linear" (Stable
    Diffusion) or "linear" (DDPM).

    Raises:
        ValueError: unless 0 <= t_min < t_max <= steps - 1 and 0 < beta_start < beta_end < 1, or for
            another spacing.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    spacing: Spacing = "scaled_linear"
    t_min: float = 0.0
    t_max: float = 999.0
    domain: Domain = "log_snr"

    def __post_init__(self) -> None:
        _check_times(self, high=self.steps - 1)
        _check_betas(self.beta_start, self.beta_end, most=1)
        require_choice("spacing", self.spacing, Spacing)

    @cached_property
    def table(self) -> Tensor:
        """log-SNR at the integer times, ``(steps,)`` float64, decreasing."""
        power = 2 if self.spacing == "scaled_linear" else 1
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        log_alpha_bar = torch.log1p(
            -(torch.linspace(*ends, self.steps, dtype=TIME_DTYPE) ** power)
        ).cumsum(0)
        return -torch.expm1(-log_alpha_bar).log() / 2


@dataclass(frozen=True)
class TableVP(_Table):
    """Any table of a discrete-time model, such as a diffusers scheduler's ``alphas_cumprod``:
    alpha^2 at each step.

    Times are the model's own step indices, as for :class:`DiscreteVP`. ``t_max`` infinity is the
    last of them.

    Raises:
        ValueError: unless the table falls strictly inside (0, 1), or for times outside it. A table
            rescaled to end at
            zero ("zero terminal SNR") needs its last step left out.
    """

    alphas_cumprod: tuple[float, ...] = field(repr=False)
    t_min: float = 0.0
    t_max: float = math.inf
    domain: Domain = "log_snr"

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alphas_cumprod, dtype=TIME_DTYPE)
        inside = table.ndim == 1 and len(table) > 1 and bool(((table > 0) & (table < 1)).all())
        if not (inside and bool((table.diff() < 0).all())):
            raise ValueError(
                "alphas_cumprod must be at least two numbers that fall strictly inside (0, 1)"
            )
        object.__setattr__(self, "alphas_cumprod", tuple(table.tolist()))
        if self.t_max == math.inf:
            object.__setattr__(self, "t_max", len(table) - 1.0)
        _check_times(self, high=len(table) - 1)

    @cached_property
    def table(self) -> Tensor:
        """log-SNR at the integer times, ``(steps,)`` float64, decreasing."""
        return torch.tensor(self.alphas_cumprod, dtype=TIME_DTYPE).logit() / 2


def same_schedule(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    """Do two schedules mean the same by a time? By value; those of a class that cannot tell only by
    their class.
    """
    if type(one) is not type(other):
        return False
    return one == other or type(one).__eq__ is object.__eq__


def is_start_time(schedule: NoiseSchedule, time: float) -> bool:
    """Is this where sampling begins, whose noise is always that of t_max? Typed and stored times
    may be rounded.
    """
    return math.isclose(time, schedule.t_max, rel_tol=1e-6)


def end_levels(schedule: NoiseSchedule) -> tuple[float, float]:
    """alpha(t_max) and sigma(t_min): zero where sampling begins at pure noise, or ends at pure
    data.
    """
    first, last = (torch.tensor(t, dtype=TIME_DTYPE) for t in (schedule.t_max, schedule.t_min))
    return float(schedule.alpha(first)), float(schedule.sigma(last))


def zero_time(schedule: NoiseSchedule) -> float:
    """Return the time that stands for sigma = 0, at or below ``t_min``.

    Args:
        schedule: any noise schedule; its attribute ``zero_time`` is returned if it has one.

    Returns:
        0 for EDM, flows and continuous VP schedules; -1 for tables, the index before the first
        (alpha_bar = 1 there, as in DDIM, Song et al., 2020, sec. 4). No network is asked there.
    """
    return float(getattr(schedule, "zero_time", 0.0))


def shifted(schedule: NoiseSchedule, t: Tensor, log_factor: Tensor) -> Tensor:
    """Return the time at which sigma / alpha is exp(``log_factor``) times that at ``t``.

    The result is ``t`` itself, bit for bit, wherever ``log_factor`` is 0, and it is differentiable
    in both arguments. It may lie outside the schedule's range; see :func:`limit_shift`.

    Args:
        schedule: any noise schedule.
        t: times of any shape, float64, where sigma is positive.
        log_factor: the change of log(sigma / alpha); broadcasts with ``t``. Positive is noisier.

    Returns:
        Times of the broadcast shape.
    """
    level = schedule.log_snr(t)
    # A difference of two inverses, since the way to log-SNR and back rounds.
    return t + (schedule.time(level - log_factor) - schedule.time(level))


def limit_shift(schedule: NoiseSchedule, tau: Tensor, dtau: Tensor) -> Tensor:
    """The time shift ``dtau`` of nodes ``tau`` (any shape), cut where it would lead to times
    without a network.

    That is at t <= 0, and beyond a schedule's ``limit``; half of the way there from its range is as
    far as it may lead.
    """
    latest = max(schedule.t_max, (schedule.t_max + getattr(schedule, "limit", math.inf)) / 2)
    shift = torch.maximum(dtau, schedule.t_min / 2 - tau)
    return shift if latest == math.inf else torch.minimum(shift, latest - tau)


def prior(schedule: NoiseSchedule, noise: Tensor) -> Tensor:
    """The start of sampling x_T = sigma(T) z from unit noise ``z`` of shape ``(batch, *shape)``."""
    return noise * float(schedule.sigma(torch.tensor(schedule.t_max, dtype=TIME_DTYPE)))


# What stored names may become.
SCHEDULES = (EDM, RectifiedFlow, LinearVP, ScaledLinearVP, DiscreteVP, TableVP)
