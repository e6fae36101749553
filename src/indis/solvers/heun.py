"""Heun's method: an Euler step, then the mean of the slopes at both ends (EDM's ODE sampler)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from indis.denoise import Form
from indis.noise import NoiseSchedule
from indis.solvers.base import Coefficients, Nodes, drift_form, first_order


@dataclass(frozen=True)
class Heun:
    """Second order with two evaluations a step.

    The last step has two as well if it ends at ``t_min``. A last step to sigma = 0 is an Euler
    step with one, so EDM's published 18 steps cost 35 evaluations.
    """

    name = "heun"
    memory = 1

    def form(self, native: Form, schedule: NoiseSchedule) -> Form:
        """Return the form in which the answer is a slope."""
        return drift_form(native, schedule)

    def kind(self, k: int, steps: int, *, singular_end: bool) -> Hashable:
        """All steps are alike."""
        return 1

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Weigh the slope at either end by half a unit."""
        carry, unit = first_order(nodes)
        half = unit / 2
        correct = torch.stack([half, half], dim=-1)
        return Coefficients(carry, unit[..., None], unit, correct=correct, trial=True)

    def nfe(self, steps: int) -> int:
        """Two evaluations a step."""
        return 2 * steps
