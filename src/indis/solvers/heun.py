"""Heun's method: a trial Euler step, then the mean of the slopes at both ends (EDM's deterministic
sampler).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule
from indis.solvers.solver import Coefficients, drift_form, first_order


@dataclass(frozen=True)
class Heun:
    """Second order with two evaluations a step, the last step included (its trial ends at t_min,
    not at 0).
    """

    memory = 1

    def form(self, native: Form) -> Form:
        """As the network answers."""
        return drift_form(native)

    def coefficients(
        self, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
    ) -> Coefficients:
        """Half a unit for each end."""
        carry, unit = first_order(schedule, form, tau)
        half = unit / 2
        return Coefficients(
            carry, unit[:, None], unit, correct=torch.stack([half, half], dim=1), trial=True
        )

    def nfe(self, steps: int) -> int:
        """Two a step."""
        return 2 * steps
