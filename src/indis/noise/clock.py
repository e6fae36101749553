"""The time of a linear VP process as a coordinate for other schedules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from indis.noise.schedule import NoiseSchedule, ratio
from indis.numerics import TIME_DTYPE


@dataclass(frozen=True)
class VPClock:
    """The linear VP process whose sigma / alpha meets a schedule's ends at u = 1 and u = 0.001.

    sigma / alpha = sqrt(exp(beta_d u^2 / 2 + beta_min u) - 1).
    """

    beta_d: float
    beta_min: float

    @classmethod
    def fit(cls, schedule: NoiseSchedule, start: float = 1e-3) -> VPClock:
        """Solve the two end conditions for the two betas."""
        ends = ratio(schedule, torch.tensor([schedule.t_max, schedule.t_min], dtype=TIME_DTYPE))
        high, low = torch.log1p(ends**2).tolist()
        beta_d = 2 * (low / start - high) / (start - 1)
        return cls(beta_d, high - beta_d / 2)

    def ratio(self, u: Tensor) -> Tensor:
        """Return sigma / alpha at VP times of any shape."""
        return torch.expm1(self.beta_d * u**2 / 2 + self.beta_min * u).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        """Return the inverse of :meth:`ratio`."""
        # The root of the quadratic in the form that does not cancel for small ratios.
        integral = torch.log1p(ratio**2)
        return (
            2 * integral / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * integral).sqrt())
        )
