r"""The solver contract: a rule that turns nodes into the coefficients of a step.

Every linear method writes step k as (paper, Eq. 2)

.. math:: x_{k+1} = u_k x_k + \sum_j w_{kj} f_{k-j}

where :math:`f` are the denoiser's answers in some :class:`~indis.denoise.Form`. A solver is a
frozen dataclass of hyper-parameters. It computes :math:`u_k` and :math:`w_{kj}`, holds no tensors
and no state, and :class:`~indis.solvers.Stepper` applies them. The coefficients of step k depend
only on the nodes up to k + 1, so a closed-loop policy may still be undecided about later nodes.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule, end_levels, levels


@dataclass(frozen=True)
class Nodes:
    """Noise levels at nodes, computed once for a whole plan.

    All tensors are ``(..., nodes)``, float64. ``scale`` and ``clock`` are those of the form in
    which the solver keeps answers.
    """

    schedule: NoiseSchedule
    columns: Tensor  # (5, ..., nodes): alpha, sigma, log_snr, scale, clock

    @classmethod
    def at(cls, schedule: NoiseSchedule, form: Form, t: Tensor) -> Nodes:
        """Look up the noise levels at times ``t`` ``(..., nodes)``."""
        alpha, sigma, log_snr = levels(schedule, t)
        scale, clock = form.scale_of(alpha, sigma), form.clock_of(alpha, sigma)
        return cls(schedule, torch.stack([alpha, sigma, log_snr, scale, clock]))

    @property
    def alpha(self) -> Tensor:
        """The factors of the data."""
        return self.columns[0]

    @property
    def sigma(self) -> Tensor:
        """The factors of the noise."""
        return self.columns[1]

    @property
    def log_snr(self) -> Tensor:
        """The logarithms of alpha / sigma."""
        return self.columns[2]

    @property
    def scale(self) -> Tensor:
        """The factor s with d(x / s) = f dc."""
        return self.columns[3]

    @property
    def clock(self) -> Tensor:
        """The variable c with d(x / s) = f dc."""
        return self.columns[4]


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of steps of one kind, for any leading axes. Answers are newest first.

    ``unit`` is the weight of a first-order step (scale times clock difference). Corrections of the
    weights are in this unit. ``correct`` weighs the answer at the *new* node first, then the
    history. With ``trial`` that answer costs a call of its own (Heun); without, the next step's
    first evaluation serves (UniPC).
    """

    carry: Tensor  # (...)
    predict: Tensor  # (..., order)
    unit: Tensor  # (...)
    correct: Tensor | None = None  # (..., 1 + order)
    trial: bool = False


@runtime_checkable
class Solver(Protocol):
    """The contract of a solver. Implementations are frozen dataclasses with a ``name``."""

    @property
    def name(self) -> str:
        """What commands call it."""

    @property
    def memory(self) -> int:
        """The number of answers that a step may use."""

    def form(self, native: Form, schedule: NoiseSchedule) -> Form:
        """Return the form in which answers are kept, given what the denoiser returns."""

    def kind(self, k: int, steps: int, *, singular_end: bool) -> Hashable:
        """Return a key; steps with equal keys share their formula and are computed together.

        Args:
            k: The step, 0 ... steps - 1.
            steps: The number of steps.
            singular_end: Whether this is the last step and log-SNR is infinite at its end.
        """

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Compute the coefficients of the last interval of ``nodes``.

        Args:
            nodes: Nodes ``(..., nodes)``, as many as the kind needs or more.
            kind: The key that :meth:`kind` returned.
        """

    def nfe(self, steps: int) -> int:
        """Return the number of network evaluations of a run without an analytic first step."""


@runtime_checkable
class Parallel(Protocol):
    """A solver some of whose evaluations may run at the same time."""

    def depth(self, steps: int) -> int:
        """Return the number of consecutive evaluations of a run without analytic first step."""


def drift_form(native: Form, schedule: NoiseSchedule) -> Form:
    """Return the form in which the answer is the slope of the ODE.

    Noise and velocity are slopes already. A data prediction becomes noise, or a velocity where
    sampling begins at pure noise and only a velocity exists.
    """
    if native is not Form.DATA:
        return native
    return Form.NOISE if end_levels(schedule)[0] else Form.VELOCITY


def first_order(nodes: Nodes) -> tuple[Tensor, Tensor]:
    """Return carry and unit ``(...)`` of the last interval of ``nodes``.

    The step is exact if the answer does not change over the interval.
    """
    scale, clock = nodes.scale, nodes.clock
    end = scale[..., -1]
    return end / scale[..., -2], end * (clock[..., -1] - clock[..., -2])


def step_order(order: int, k: int, steps: int, *, lower_final: bool, singular_end: bool) -> int:
    """Return the order of step k: warm-up 1, 2, 3, ..., and ..., 2, 1 at the end if asked for.

    A last step to infinite log-SNR is of first order in any case: higher ones divide by its
    infinite length.
    """
    if lower_final:
        return min(order, k + 1, steps - k)
    return 1 if singular_end and k == steps - 1 else min(order, k + 1)
