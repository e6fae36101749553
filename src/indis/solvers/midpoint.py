r"""Midpoint methods: a step asks at K points inside itself and goes along the mean of the answers.

Midpoints are nodes, so these methods need no loop of their own: a step from :math:`t` to
:math:`t'` is K + 1 sub-steps over the nodes :math:`t, m_1, \dots, m_K, t'`. With the form's clock
c, scale s and :math:`y = x / s`, which moves along the clock alone,

.. math::
    y_{m_j} = y_t + (c_{m_j} - c_t) \sum_i a_i f_i, \qquad
    y_{t'} = y_t + (c_{t'} - c_t) \tfrac{1}{K} \sum_j f_{m_j}

with :math:`f_i` the answers at the starts of this and earlier steps and :math:`a_i` the
Adams-Bashforth weights of an even grid. A sub-step starts where the previous one ended, so the
last sub-step takes back what the prediction added. The plan decides where midpoints lie: halfway
in log-SNR, K = 1 and order 1 are DPM-Solver-2 (Lu et al., 2022a, Algorithm 1), halfway in a flow's
time the classical midpoint rule. ``order`` above 1 is EPD-Plugin (Zhu et al., 2025, as in the
authors' program): only the predictions of the midpoints use the history, and the history holds
only the answers at the starts of steps.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule
from indis.solvers.adams import EVEN_WEIGHTS
from indis.solvers.base import Coefficients, Nodes, drift_form, first_order


@dataclass(frozen=True)
class Midpoint:
    """``points`` midpoints a step, predicted with an Adams-Bashforth ``order``.

    Corrections of the weights at a step's last sub-step are in units of the whole step, newest
    midpoint first.

    Raises:
        ValueError: If there is no midpoint, or no such order.
    """

    name = "midpoint"

    points: int = 1
    order: int = 1

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points must be at least 1, got {self.points}")
        if self.order not in EVEN_WEIGHTS:
            raise ValueError(f"order must be 1, 2, 3 or 4, got {self.order}")

    @property
    def memory(self) -> int:
        """As many answers as ``order`` steps ask for."""
        return self.order * (self.points + 1)

    def form(self, native: Form, schedule: NoiseSchedule) -> Form:
        """Return the form in which the answer is a slope."""
        return drift_form(native, schedule)

    def kind(self, k: int, steps: int, *, singular_end: bool) -> Hashable:
        """The place of the sub-step inside its step, and the order of the step.

        Raises:
            ValueError: If the sub-steps are not whole steps.
        """
        self.nfe(steps)
        step, place = divmod(k, self.points + 1)
        return place, min(self.order, step + 1)

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Go to a midpoint, or from the last midpoint to the end of the step."""
        assert isinstance(kind, tuple)
        place, order = kind
        carry, unit = first_order(nodes)
        if place < self.points:
            weights = self._along_starts(unit, order, place)
            return Coefficients(carry, torch.stack(weights, dim=-1), unit)
        scale, clock = nodes.scale[..., -1], nodes.clock
        start = clock[..., -self.points - 2]
        whole, undo = scale * (clock[..., -1] - start), scale * (start - clock[..., -2])
        along = self._along_starts(undo, order, place)
        weights = [whole / self.points] * self.points + along[self.points :]
        return Coefficients(carry, torch.stack(weights, dim=-1), whole)

    def nfe(self, steps: int) -> int:
        """One evaluation a sub-step.

        Raises:
            ValueError: If the sub-steps are not whole steps.
        """
        if steps % (self.points + 1):
            raise ValueError(
                f"steps must be a multiple of {self.points + 1}, points + 1, for {self}, "
                f"got {steps}"
            )
        return steps

    def depth(self, steps: int) -> int:
        """Two evaluations a step if the midpoints of a step are evaluated at the same time.

        EPD's papers count these. The loop evaluates one after another, but no midpoint's question
        depends on another's answer.
        """
        return 2 * (steps // (self.points + 1))

    def _along_starts(self, amount: Tensor, order: int, place: int) -> list[Tensor]:
        """Weights, newest first, that move by ``amount`` along the answers at starts of steps."""
        inside = [torch.zeros_like(amount)] * self.points
        past = [weight * amount for weight in EVEN_WEIGHTS[order]]
        weights = inside[:place]  # the midpoints of this step that have answered
        for weight in past[:-1]:
            weights = [*weights, weight, *inside]
        return [*weights, past[-1]]
