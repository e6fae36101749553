"""Adams-Bashforth methods: Euler, iPNDM, exact variable-step weights, DEIS.

All of them integrate the answers along the clock of their form. They differ in the polynomial that
they put through the answers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule, VPClock
from indis.numerics import integrate_lagrange, quadrature_points, weigh_lagrange
from indis.solvers.base import Coefficients, Nodes, drift_form, first_order, step_order

# Adams-Bashforth weights of an even grid, newest first.
EVEN_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class Euler:
    """First order: DDIM in noise form, the Euler step of a flow in velocity form."""

    name = "euler"
    memory = 1
    corrects = False  # a step, once the answer at its end is known; others may

    def form(self, native: Form, schedule: NoiseSchedule) -> Form:
        """Return the form in which the answer is a slope."""
        return drift_form(native, schedule)

    def kind(self, k: int, steps: int, *, singular_end: bool) -> Hashable:
        """All steps are alike."""
        return 1

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Weigh the newest answer by the unit."""
        carry, unit = first_order(nodes)
        return Coefficients(carry, unit[..., None], unit)

    def nfe(self, steps: int) -> int:
        """One evaluation a step."""
        return steps


@dataclass(frozen=True)
class _Multistep:
    """The shared part of the multistep methods: an order with a warm-up of 1, 2, 3, ..."""

    order: int = 3

    def __post_init__(self) -> None:
        if self.order not in EVEN_WEIGHTS:
            raise ValueError(f"order must be 1, 2, 3 or 4, got {self.order}")

    @property
    def memory(self) -> int:
        """As many answers as the order."""
        return self.order

    def form(self, native: Form, schedule: NoiseSchedule) -> Form:
        """Return the form in which the answer is a slope."""
        return drift_form(native, schedule)

    def kind(self, k: int, steps: int, *, singular_end: bool) -> Hashable:
        """The order of the step."""
        return min(self.order, k + 1)

    def nfe(self, steps: int) -> int:
        """One evaluation a step."""
        return steps


@dataclass(frozen=True)
class IPNDM(_Multistep):
    """Improved pseudo linear multistep (Zhang & Chen, 2023): even-grid weights on any grid.

    This is the published method, not a consistent one of its order. On an uneven grid the constant
    weights extrapolate more than the exact ones (:class:`AdamsBashforth`), which is what makes it
    strong at few steps.
    """

    name = "ipndm"

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Multiply the constant weights by the unit."""
        carry, unit = first_order(nodes)
        weights = torch.tensor(EVEN_WEIGHTS[_order(kind)], dtype=unit.dtype)
        return Coefficients(carry, unit[..., None] * weights, unit)


@dataclass(frozen=True)
class _Exact(_Multistep):
    """A multistep method that integrates its polynomial over the nodes themselves.

    ``lower_order_final`` ends with orders ..., 2, 1, as DPM-Solver++ does. It is off as published.
    """

    lower_order_final: bool = False

    def kind(self, k: int, steps: int, *, singular_end: bool) -> Hashable:
        """The order of the step."""
        lower = self.lower_order_final
        return step_order(self.order, k, steps, lower_final=lower, singular_end=False)


@dataclass(frozen=True)
class AdamsBashforth(_Exact):
    """Exact variable-step Adams-Bashforth in the clock of the form (for noise: "rho-AB").

    Published ``iPNDM_v`` code means this but has three slips in its formulas. Numbers differ from
    it on purpose.
    """

    name = "adams_bashforth"

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Integrate the Lagrange polynomials of the last nodes over the new interval."""
        carry, unit = first_order(nodes)
        past, stop = _recent(nodes.clock, _order(kind))
        weights = torch.stack(integrate_lagrange(past, past[0], stop), dim=-1)
        return Coefficients(carry, nodes.scale[..., -1:] * weights, unit)


@dataclass(frozen=True)
class DEIS(_Exact):
    """tAB-DEIS (Zhang & Chen, 2023): polynomials in VP time, integrated over sigma / alpha.

    It works in noise form only, so a schedule that begins at pure noise (a flow from t = 1) is
    refused.
    """

    name = "deis"

    def form(self, native: Form, schedule: NoiseSchedule) -> Form:
        """Noise."""
        return Form.NOISE

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Integrate by quadrature, exact to rounding (published code: a sum of 10 000 points).

        The variable of integration is the logarithm of sigma / alpha, in which the integrand is
        smooth. In VP time it has a root at 0, next to which the last interval ends.
        """
        carry, unit = first_order(nodes)
        clock = VPClock.fit(nodes.schedule)
        past, _ = _recent(clock.time((-nodes.log_snr).exp()), _order(kind))
        start, stop = (-nodes.log_snr[..., -2:]).unbind(-1)
        at, mass = quadrature_points(start, stop, panels=4)
        weights = torch.stack(weigh_lagrange(past, clock.time(at.exp()), mass * at.exp()), dim=-1)
        return Coefficients(carry, nodes.scale[..., -1:] * weights, unit)


def _order(kind: Hashable) -> int:
    assert isinstance(kind, int)
    return kind


def _recent(coordinate: Tensor, order: int) -> tuple[list[Tensor], Tensor]:
    """The ``order`` newest nodes, newest first, and the node to reach."""
    return [coordinate[..., -2 - j] for j in range(order)], coordinate[..., -1]
