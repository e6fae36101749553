r"""What a solver is: a rule that turns nodes into the coefficients of one step.

Every linear method writes step k as (paper, Eq. 2)

.. math:: x_{k+1} = u_k x_k + \sum_j w_{kj} f_{k-j}

with :math:`f` the denoiser's answers in some :class:`~indis.denoise.Form`. A solver is a frozen
dataclass of hyper-parameters whose one job is to compute :math:`u_k` and :math:`w_{kj}`; it holds
no tensors and no state, and the one loop in :mod:`indis.solvers.loop` applies them. The
coefficients of step k depend only on the nodes up to k + 1, so a closed-loop policy may still be
undecided about later nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule


@dataclass(frozen=True)
class Coefficients:
    """One step, for every row of the grid. Answers are ordered newest first.

    ``unit`` is the weight of a first-order step (scale times clock difference): corrections of the
    weights are in its units. ``correct`` weighs the answer at the *new* node first, then the
    history; with ``trial`` that answer costs a call of its own (Heun), else the next step's first
    evaluation serves (UniC).
    """

    carry: Tensor  # (grid,)
    predict: Tensor  # (grid, order)
    unit: Tensor  # (grid,)
    correct: Tensor | None = None  # (grid, 1 + order)
    trial: bool = False


@runtime_checkable
class Solver(Protocol):
    """Implementations are frozen dataclasses."""

    @property
    def memory(self) -> int:
        """How many answers a step uses."""

    def form(self, native: Form) -> Form:
        """The form in which the history is kept, given what the denoiser returns."""

    def coefficients(
        self, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
    ) -> Coefficients:
        """The last interval of ``tau`` ``(grid, k + 2)``: step k of ``steps``."""

    def nfe(self, steps: int) -> int:
        """Network evaluations of a run without analytic first step."""


@runtime_checkable
class Parallel(Protocol):
    """A solver some of whose evaluations may be made at the same time."""

    def depth(self, steps: int) -> int:
        """Evaluations one after another of a run without analytic first step."""


def drift_form(native: Form) -> Form:
    """Noise or velocity as the network gives it; noise if it predicts data."""
    return Form.NOISE if native is Form.DATA else native


def first_order(schedule: NoiseSchedule, form: Form, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Carry and unit ``(grid,)`` of the last interval: exact if the answer does not change over
    it.
    """
    scale, clock = form.scale(schedule, tau[:, -2:]), form.clock(schedule, tau[:, -2:])
    return scale[:, 1] / scale[:, 0], scale[:, 1] * (clock[:, 1] - clock[:, 0])


def step_order(order: int, k: int, steps: int, *, final: bool) -> int:
    """The order of step k: warm-up 1, 2, 3, and the mirror image at the end if ``final``."""
    return min(order, k + 1, steps - k) if final else min(order, k + 1)
