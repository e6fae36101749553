"""Noise schedules of discrete-time models: tables, made continuous by interpolation.

Times are the model's own step indices 0, 1, ... as floats. Nothing is rounded, so a time keeps its
gradient. Between two steps log-SNR is linear. A table may end at pure noise ("zero terminal SNR",
Lin et al., 2024), where log-SNR has no end: before that last step alpha is linear instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from indis.checks import require_choice
from indis.noise.schedule import TINY, Domain, Prior, check_betas, check_times
from indis.numerics import TIME_DTYPE

Spacing = Literal["linear", "scaled_linear"]


class _Table(ABC):
    """alpha^2 + sigma^2 = 1, given log-SNR at the steps of a table."""

    zero_time: ClassVar[float] = -1.0  # the index before the first, as in DDIM with alpha_bar = 1

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """log-SNR at the integer times where alpha > 0, ``(steps,)`` float64, decreasing."""

    @property
    def ends_in_noise(self) -> bool:
        """Whether one more step follows those of :attr:`table`, where alpha is 0."""
        return False

    @property
    def limit(self) -> float:
        """The last step of the table."""
        return len(self.table) - 1.0 + self.ends_in_noise

    def alpha(self, t: Tensor) -> Tensor:
        return self.levels(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.levels(t)[1]

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        level = self.log_snr(t)
        alpha, sigma = (torch.sigmoid(sign * level).sqrt() for sign in (2, -2))
        if self.ends_in_noise:
            alpha = torch.where(t > len(self.table) - 1, self._fading_alpha(t), alpha)
        return alpha, sigma, level

    def log_snr(self, t: Tensor) -> Tensor:
        table = self.table.to(t.device, t.dtype)
        # The cell is chosen without gradient; the position inside it (or beyond the last one)
        # carries the gradient.
        cell = t.detach().floor().long().clamp(0, len(table) - 2)
        low, high = table[cell], table[cell + 1]
        level = low + (t - cell) * (high - low)
        if self.ends_in_noise:
            alpha = self._fading_alpha(t)
            fading = alpha.clamp_min(TINY).log() - torch.log1p(-alpha.square()) / 2
            level = torch.where(t > len(table) - 1, fading, level)
        return torch.where(t <= self.zero_time, math.inf, level)

    def time(self, log_snr: Tensor) -> Tensor:
        table = self.table.to(log_snr.device, log_snr.dtype)
        cell = torch.searchsorted(-table, -log_snr.detach().contiguous(), right=True) - 1
        cell = cell.clamp(0, len(table) - 2)
        low, high = table[cell], table[cell + 1]
        time = (cell + (log_snr - low) / (high - low)).clamp_min(self.zero_time)
        if not self.ends_in_noise:
            return time
        share = torch.sigmoid(2 * log_snr).sqrt() / self._last_alpha(table)
        return torch.where(log_snr < table[-1], self.limit - share, time)

    def _fading_alpha(self, t: Tensor) -> Tensor:
        """alpha between the last two steps of a table that ends in noise: linear, down to 0."""
        left = (self.limit - t).clamp(0, 1)
        return left * self._last_alpha(self.table.to(t.device, t.dtype))

    def _last_alpha(self, table: Tensor) -> Tensor:
        return torch.sigmoid(2 * table[-1]).sqrt()


@dataclass(frozen=True)
class DiscreteVP(_Table):
    """The table that a formula of betas gives.

    Args:
        beta_start: the first beta.
        beta_end: the last beta.
        steps: the length of the table. A table of another length than 1000 needs other betas.
        spacing: diffusers' ``beta_schedule``, "scaled_linear" (Stable Diffusion) or "linear"
            (DDPM).
        t_min: the last step index at which the network is asked.
        t_max: the first step index; infinity is the last of the table, ``steps - 1``.
        domain: the coordinate of equal steps.
        prior: how sampling begins, see :func:`indis.noise.prior`.

    Raises:
        ValueError: unless 0 <= t_min < t_max <= steps - 1 and 0 < beta_start < beta_end < 1, or for
            another spacing.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    spacing: Spacing = "scaled_linear"
    t_min: float = 0.0
    t_max: float = math.inf
    domain: Domain = "log_snr"
    prior: Prior = "marginal"

    def __post_init__(self) -> None:
        if self.t_max == math.inf:
            object.__setattr__(self, "t_max", self.steps - 1.0)
        check_times(self, high=self.steps - 1)
        check_betas(self.beta_start, self.beta_end, most=1)
        require_choice("spacing", self.spacing, Spacing)

    @cached_property
    def table(self) -> Tensor:
        """log-SNR at the integer times, ``(steps,)`` float64, decreasing."""
        power = 2 if self.spacing == "scaled_linear" else 1
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        betas = torch.linspace(*ends, self.steps, dtype=TIME_DTYPE) ** power
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        return -torch.expm1(-log_alpha_bar).log() / 2


@dataclass(frozen=True)
class TableVP(_Table):
    """Any table of a discrete-time model, such as a diffusers scheduler's ``alphas_cumprod``.

    Args:
        alphas_cumprod: alpha^2 at each step, numbers or a tensor. The last may be 0: a model with
            zero terminal SNR, which predicts velocity, v or data there, since a noise prediction
            at pure noise says nothing of the data.
        t_min: the last step index at which the network is asked.
        t_max: the first step index; infinity is the last of the table.
        domain: the coordinate of equal steps.
        prior: how sampling begins, see :func:`indis.noise.prior`.

    Raises:
        ValueError: unless the table falls strictly inside (0, 1), but for a last 0, or for times
            outside it.
    """

    alphas_cumprod: tuple[float, ...] = field(repr=False)
    t_min: float = 0.0
    t_max: float = math.inf
    domain: Domain = "log_snr"
    prior: Prior = "marginal"

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alphas_cumprod, dtype=TIME_DTYPE)
        if not (table.ndim == 1 and _falls(table[:-1] if 0 in table[-1:] else table)):
            raise ValueError(
                "alphas_cumprod must be at least two numbers that fall strictly inside (0, 1), "
                "after which one 0 may follow"
            )
        object.__setattr__(self, "alphas_cumprod", tuple(table.tolist()))
        if self.t_max == math.inf:
            object.__setattr__(self, "t_max", len(table) - 1.0)
        check_times(self, high=len(table) - 1)

    @property
    def ends_in_noise(self) -> bool:
        """Whether alpha is 0 at the last step."""
        return self.alphas_cumprod[-1] == 0

    @cached_property
    def table(self) -> Tensor:
        """log-SNR at the integer times where alpha > 0, float64, decreasing."""
        inside = self.alphas_cumprod[: -1 if self.ends_in_noise else None]
        return torch.tensor(inside, dtype=TIME_DTYPE).logit() / 2


def _falls(table: Tensor) -> bool:
    """Return whether at least two numbers fall strictly inside (0, 1)."""
    inside = bool(((table > 0) & (table < 1)).all())
    return len(table) > 1 and inside and bool((table.diff() < 0).all())
