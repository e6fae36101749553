"""The contract of a noise schedule, and what can be computed from any schedule that keeps it."""

from __future__ import annotations

import math
import sys
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from indis.checks import number_text, require_choice
from indis.numerics import TIME_DTYPE, scaled

Domain = Literal["time", "log_snr"]
Prior = Literal["marginal", "unit"]

TINY = 1e-8  # alpha and sigma are kept above this inside a logarithm
_LARGEST_DRAW = 8.0  # of a unit normal number; exceeded about once in 1e15 draws


@runtime_checkable
class NoiseSchedule(Protocol):
    """The contract of a noise schedule. All methods are elementwise on tensors of any shape.

    A method ``levels`` is optional; see :func:`levels`. So are three attributes. ``limit`` is the
    last time at which a network is defined (see :func:`limit_shift`), infinity if absent.
    ``zero_time`` is the time that stands for sigma = 0 (see :func:`zero_time`), 0 if absent.
    ``prior`` says how sampling begins (see :func:`prior`), "marginal" if absent.
    """

    @property
    def t_min(self) -> float:
        """The last time at which a network is asked, t_0 in the paper."""

    @property
    def t_max(self) -> float:
        """The first time of sampling, T in the paper."""

    @property
    def domain(self) -> Domain:
        """The coordinate of equal steps: log-SNR if sigma spans decades, time for flows."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of the data."""

    def sigma(self, t: Tensor) -> Tensor:
        """Return the factor of the noise."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Return log(alpha / sigma)."""

    def time(self, log_snr: Tensor) -> Tensor:
        """Return the inverse of :meth:`log_snr`."""


def levels(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha, sigma and log(alpha / sigma) at times ``t``, each shaped like ``t``.

    A schedule's own method ``levels`` is used if it has one, since one look-up may serve all three.
    """
    if hasattr(schedule, "levels"):
        own: tuple[Tensor, Tensor, Tensor] = schedule.levels(t)
        return own
    return schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)


def check_times(
    schedule: NoiseSchedule, *, above_zero: bool = False, high: float = sys.float_info.max
) -> None:
    """Refuse times out of order or out of [0, high]; with ``above_zero`` t_min must exceed 0."""
    first = schedule.t_min > 0 if above_zero else schedule.t_min >= 0
    if not (first and schedule.t_min < schedule.t_max <= high):
        least = "0 < t_min" if above_zero else "0 <= t_min"
        most = f" <= {high:g}" if high < sys.float_info.max else ""
        given = f"{number_text(schedule.t_min)} and {number_text(schedule.t_max)}"
        raise ValueError(f"times must satisfy {least} < t_max{most}, got {given}")
    require_choice("domain", schedule.domain, Domain)
    require_choice("prior", getattr(schedule, "prior", "marginal"), Prior)


def check_betas(first: float, last: float, most: float = math.inf) -> None:
    """Refuse betas that do not increase from above 0 to below ``most``."""
    if not 0 < first < last < most:
        bound = "" if most == math.inf else f" < {most:g}"
        raise ValueError(f"betas must satisfy 0 < first < last{bound}, got {first:g} and {last:g}")


def same_schedule(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    """Return whether two schedules assign the same noise levels to a time.

    They are compared by value, or by class if the class defines no equality.
    """
    if type(one) is not type(other):
        return False
    return one == other or type(one).__eq__ is object.__eq__


def same_levels(one: NoiseSchedule, other: NoiseSchedule) -> bool:
    """Return whether a schedule has the noise levels of another one, on the times of the latter.

    A tool's own table need not be that of a fit to the last digit, nor end at the same times.

    Args:
        one: a schedule.
        other: the one whose times count.
    """
    t = torch.linspace(other.t_min, other.t_max, 9, dtype=TIME_DTYPE)
    pairs = ((one.alpha(t), other.alpha(t)), (one.sigma(t), other.sigma(t)))
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in pairs)


def is_start_time(schedule: NoiseSchedule, time: float) -> bool:
    """Return whether ``time`` is t_max up to a relative 1e-6, the rounding of stored times."""
    return math.isclose(time, schedule.t_max, rel_tol=1e-6)


def end_levels(schedule: NoiseSchedule) -> tuple[float, float]:
    """Return alpha(t_max) and sigma(t_min).

    The first is 0 where sampling begins at pure noise, the second where it ends at pure data.
    """
    first, last = (torch.tensor(t, dtype=TIME_DTYPE) for t in (schedule.t_max, schedule.t_min))
    return float(schedule.alpha(first)), float(schedule.sigma(last))


def ratio(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Return the noise-to-signal ratio sigma / alpha at times of any shape."""
    return (-schedule.log_snr(t)).exp()


def zero_time(schedule: NoiseSchedule) -> float:
    """Return the time that stands for sigma = 0, at or below ``t_min``.

    No network is asked there. alpha is 1 and sigma is 0 at this time for every schedule of this
    library.

    Args:
        schedule: any noise schedule; its attribute ``zero_time`` is returned if it has one.

    Returns:
        0 for EDM, flows and continuous VP schedules; -1 for tables, the index before the first
        (alpha_bar = 1 there, as in DDIM, Song et al., 2020, sec. 4).
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
    """Return time shifts cut so that ``tau + dtau`` stays where a network is defined.

    A shifted time is at least t_min / 2, and at most half of the way from t_max to the schedule's
    ``limit``.

    Args:
        schedule: any noise schedule.
        tau: nodes of any shape.
        dtau: their time shifts, same shape, in units of time.

    Returns:
        The shifts, of the same shape.
    """
    latest = max(schedule.t_max, (schedule.t_max + getattr(schedule, "limit", math.inf)) / 2)
    shift = torch.maximum(dtau, schedule.t_min / 2 - tau)
    return shift if latest == math.inf else torch.minimum(shift, latest - tau)


def prior(schedule: NoiseSchedule, noise: Tensor) -> Tensor:
    r"""Return the start of sampling :math:`x_T` from unit noise.

    The schedule's attribute ``prior`` chooses between two conventions. "marginal", the default
    here, is :math:`x_T = \sigma(T) z`, the noise part of the marginal at t_max. "unit" is
    :math:`x_T = z`, what diffusers' DDIM, PNDM and DPM-Solver schedulers begin with
    (``init_noise_sigma = 1``). For Stable Diffusion the two differ by 0.23 % in scale.

    Sampling always begins at t_max. Schedulers with ``timestep_spacing="leading"`` begin earlier,
    for example at step 981 or 901, still with unit noise: that is a schedule with this ``t_max``
    and ``prior="unit"``.

    Args:
        schedule: any noise schedule.
        noise: unit normal noise z ``(batch, *shape)``.

    Returns:
        x_T, in the shape and dtype of ``noise``.

    Raises:
        ValueError: if sigma(T) times a normal number exceeds the largest number of the dtype.
    """
    if getattr(schedule, "prior", "marginal") == "unit":
        return noise
    sigma = float(schedule.sigma(torch.tensor(schedule.t_max, dtype=TIME_DTYPE)))
    largest = torch.finfo(noise.dtype).max
    if sigma * _LARGEST_DRAW > largest:
        raise ValueError(
            f"noise must be of a dtype that holds sigma(t_max) = {sigma:g} times a normal number, "
            f"such as float32, got {noise.dtype}, whose largest number is {largest:g}"
        )
    return scaled(sigma, noise)
