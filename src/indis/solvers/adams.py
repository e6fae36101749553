"""Adams-Bashforth methods: Euler, iPNDM, exact variable-step weights, DEIS.

All integrate the answers themselves along the clock of their form; they differ in the polynomial
that is put through them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from indis.denoise import Form
from indis.grids import VPClock, ratio
from indis.noise import NoiseSchedule
from indis.numerics import integrate_lagrange, quadrature_points, weigh_lagrange
from indis.solvers.solver import Coefficients, drift_form, first_order, step_order

# Adams-Bashforth weights of an even grid, newest first.
EVEN_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class Euler:
    """First order: DDIM in noise form, the flow Euler step in velocity form."""

    memory = 1

    def form(self, native: Form) -> Form:
        """As the network answers."""
        return drift_form(native)

    def coefficients(
        self, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
    ) -> Coefficients:
        """One unit of the newest answer."""
        carry, unit = first_order(schedule, form, tau)
        return Coefficients(carry, unit[:, None], unit)

    def nfe(self, steps: int) -> int:
        """One a step."""
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

    def form(self, native: Form) -> Form:
        """As the network answers."""
        return drift_form(native)

    def nfe(self, steps: int) -> int:
        """One a step."""
        return steps


@dataclass(frozen=True)
class IPNDM(_Multistep):
    """Improved pseudo linear multistep (Zhang & Chen, 2023): the weights of an even grid on
    whatever grid is given.

    This is the published method, not a consistent one of its order: on an uneven grid the constant
    weights extrapolate more than the exact ones (:class:`AdamsBashforth`), which is what makes it
    strong at few steps.
    """

    def coefficients(
        self, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
    ) -> Coefficients:
        """Constant weights times the unit."""
        carry, unit = first_order(schedule, form, tau)
        weights = torch.tensor(
            EVEN_WEIGHTS[min(self.order, tau.shape[1] - 1)], dtype=tau.dtype, device=tau.device
        )
        return Coefficients(carry, unit[:, None] * weights, unit)


@dataclass(frozen=True)
class _Exact(_Multistep):
    """A multistep method that integrates its polynomial over the very nodes, whatever the order of
    a step.

    ``lower_order_final`` ends with orders ..., 2, 1, as DPM-Solver++ does; it is off as published.
    """

    lower_order_final: bool = False

    def _recent(self, coordinate: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
        """The nodes whose answers step k of ``steps`` uses, newest first, and the node to reach."""
        past = coordinate[:, :-1]
        order = step_order(self.order, past.shape[1] - 1, steps, final=self.lower_order_final)
        return [past[:, -1 - j] for j in range(order)], coordinate[:, -1]


@dataclass(frozen=True)
class AdamsBashforth(_Exact):
    """Exact variable-step Adams-Bashforth in the clock of the form (sigma / alpha for noise:
    "rho-AB").

    Published ``iPNDM_v`` code means this but has three slips in its formulas; numbers differ from
    it on purpose.
    """

    def coefficients(
        self, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
    ) -> Coefficients:
        """Integrals of the Lagrange polynomials of the last nodes over the new interval."""
        carry, unit = first_order(schedule, form, tau)
        nodes, stop = self._recent(form.clock(schedule, tau), steps)
        weights = integrate_lagrange(nodes, nodes[0], stop)
        return Coefficients(
            carry, form.scale(schedule, tau[:, -1:]) * torch.stack(weights, dim=1), unit
        )


@dataclass(frozen=True)
class DEIS(_Exact):
    """tAB-DEIS (Zhang & Chen, 2023): Lagrange polynomials in the time of a VP process, integrated
    over sigma / alpha.

    Noise form only, so the loop refuses a schedule whose first time has no signal at all (a flow
    that starts at t = 1).
    """

    def form(self, native: Form) -> Form:
        """Noise."""
        return Form.NOISE

    def coefficients(
        self, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
    ) -> Coefficients:
        """Integrals to rounding, by quadrature; published code uses a Riemann sum of 10 000 points.

        Over the logarithm of sigma / alpha, where the integrand is smooth: in VP time it has a root
        at 0, next to which the last interval ends.
        """
        carry, unit = first_order(schedule, form, tau)
        clock = VPClock.fit(schedule)
        nodes, _ = self._recent(clock.time(ratio(schedule, tau)), steps)
        start, stop = (-schedule.log_snr(tau[:, -2:])).unbind(1)
        at, mass = quadrature_points(start, stop, panels=4)
        weights = weigh_lagrange(nodes, clock.time(at.exp()), mass * at.exp())
        return Coefficients(
            carry, form.scale(schedule, tau[:, -1:]) * torch.stack(weights, dim=1), unit
        )
