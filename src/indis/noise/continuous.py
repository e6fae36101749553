"""Noise schedules that are formulas of a continuous time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from indis.noise.schedule import TINY, Domain, Prior, check_betas, check_times


@dataclass(frozen=True)
class EDM:
    """Variance exploding with sigma = t (Karras et al., 2022, Table 1).

    Args:
        t_min: the last sigma at which the network is asked.
        t_max: the first sigma.
        domain: the coordinate of equal steps.

    Raises:
        ValueError: unless 0 < t_min < t_max.
    """

    t_min: float = 0.002
    t_max: float = 80.0
    domain: Domain = "log_snr"

    def __post_init__(self) -> None:
        check_times(self, above_zero=True)

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

    Args:
        t_min: the last time.
        t_max: the first time.
        domain: the coordinate of equal steps.

    Raises:
        ValueError: unless 0 <= t_min < t_max <= 1.
    """

    limit: ClassVar[float] = 1.0

    t_min: float = 0.0
    t_max: float = 1.0
    domain: Domain = "time"

    def __post_init__(self) -> None:
        check_times(self, high=self.limit)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def log_snr(self, t: Tensor) -> Tensor:
        # Both ends are legal times of a flow, so the logarithm is kept finite there.
        return (1 - t).clamp_min(TINY).log() - t.clamp_min(TINY).log()

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr)


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

    Args:
        beta_min: beta at t = 0, per unit time.
        beta_max: beta at t = 1, per unit time.
        t_min: the last time at which the network is asked.
        t_max: the first time.
        domain: the coordinate of equal steps.
        prior: how sampling begins, see :func:`indis.noise.prior`.

    Raises:
        ValueError: unless 0 < t_min < t_max and 0 < beta_min < beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    domain: Domain = "log_snr"
    prior: Prior = "marginal"

    def __post_init__(self) -> None:
        check_times(self, above_zero=True)
        check_betas(self.beta_min, self.beta_max)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def _inverse(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        # The root of the quadratic in the form that does not cancel for small integrals.
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())


@dataclass(frozen=True)
class ScaledLinearVP(_VariancePreserving):
    """sqrt(beta) linear in t on [0, 1]: the "scaled_linear" betas in continuous time.

    Args:
        beta_min: beta at t = 0, per unit time: 1000 times the first beta of a table of 1000 steps.
        beta_max: beta at t = 1, per unit time.
        t_min: the last time at which the network is asked.
        t_max: the first time.
        domain: the coordinate of equal steps.
        prior: how sampling begins, see :func:`indis.noise.prior`.

    Raises:
        ValueError: unless 0 < t_min < t_max and 0 < beta_min < beta_max.
    """

    beta_min: float = 0.85
    beta_max: float = 12.0
    t_min: float = 1e-3
    t_max: float = 1.0
    domain: Domain = "log_snr"
    prior: Prior = "marginal"

    def __post_init__(self) -> None:
        check_times(self, above_zero=True)
        check_betas(self.beta_min, self.beta_max)

    @property
    def _slope(self) -> float:
        return self.beta_max**0.5 - self.beta_min**0.5

    def _integral(self, t: Tensor) -> Tensor:
        # ((start + slope t)^3 - start^3) / (3 slope), without the cancellation near t = 0.
        start, slope = self.beta_min**0.5, self._slope
        return t * (start**2 + t * (start * slope + t * slope**2 / 3))

    def _inverse(self, integral: Tensor) -> Tensor:
        start = self.beta_min**0.5
        return ((3 * self._slope * integral + start**3) ** (1 / 3) - start) / self._slope
