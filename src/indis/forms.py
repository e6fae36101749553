r"""Forms of a prediction: noise, data and velocity, and all conversions between them.

The three forms are linear views of the same posterior mean at :math:`x = \alpha x_0 + \sigma
\epsilon`:

=========  ==========  =============  ====================
form       value f     scale s        clock c
=========  ==========  =============  ====================
noise      eps         alpha          sigma / alpha
data       x_0         sigma          alpha / sigma
velocity   eps - x_0   alpha + sigma  sigma/(alpha+sigma)
=========  ==========  =============  ====================

In every form the ODE reads d(x / s) = f dc, so a solver step is "carry x, add weighted values".
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from indis.noise import NoiseSchedule, levels
from indis.numerics import broadcast


class Form(Enum):
    r"""The meaning of a denoiser's answer at a state :math:`x = \alpha x_0 + \sigma \epsilon`.

    * ``NOISE``, "noise": :math:`\epsilon`, the noise that was added (diffusers' ``epsilon``).
    * ``DATA``, "data": :math:`x_0`, the clean sample (diffusers' ``sample``).
    * ``VELOCITY``, "velocity": :math:`\epsilon - x_0`, from the data to the noise. For a flow,
      where :math:`x = (1 - t) x_0 + t \epsilon`, it is :math:`dx / dt`. For a flow with noise at
      0 and data at 1, whose network predicts :math:`x_0 - \epsilon`, it is minus the network's
      answer at 1 - t.

    The :math:`v = \alpha \epsilon - \sigma x_0` of Salimans & Ho (2022), diffusers'
    ``v_prediction``, is none of them, not even the velocity. :meth:`Wrapped.from_v` takes a
    function that predicts it.
    """

    NOISE = "noise"
    DATA = "data"
    VELOCITY = "velocity"

    def scale(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """Return the factor s that makes x / s move along the clock alone, shaped like ``t``."""
        return self.scale_of(schedule.alpha(t), schedule.sigma(t))

    def clock(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """Return the variable c with d(x / s) = f dc, shaped like ``t``."""
        return self.clock_of(schedule.alpha(t), schedule.sigma(t))

    def scale_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return :meth:`scale` at these noise levels."""
        if self is Form.NOISE:
            return alpha
        return sigma if self is Form.DATA else alpha + sigma

    def clock_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return :meth:`clock` at these noise levels."""
        if self is Form.NOISE:
            return sigma / alpha
        if self is Form.DATA:
            return alpha / sigma
        return sigma / (alpha + sigma)


def conversion(source: Form, target: Form, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (scale, ratio) with ``target value = scale (x + ratio * source value)``.

    They are free of cancellation except where the target itself does not exist (noise from data
    at sigma = 0, data from noise at alpha = 0).

    Raises:
        ValueError: If the forms are equal, between which there is nothing to convert.
    """
    if source is target:
        raise ValueError(f"target must be another form than {source.value}")
    total = alpha + sigma
    if source is Form.VELOCITY:
        return 1 / total, -sigma if target is Form.DATA else alpha
    if source is Form.NOISE:
        return (1 / alpha, -sigma) if target is Form.DATA else (-1 / alpha, -total)
    return 1 / sigma, -alpha if target is Form.NOISE else -total


def convert(
    value: Tensor, source: Form, target: Form, *, x: Tensor, schedule: NoiseSchedule, t: Tensor
) -> Tensor:
    """Convert a prediction from one form into another.

    Args:
        value: The prediction ``(batch, *shape)``.
        source: Its form.
        target: The form to return.
        x: The state ``(batch, *shape)`` it was made at.
        schedule: The noise schedule.
        t: The times ``(grid,)`` of the state.

    Returns:
        The prediction in the form ``target``, ``(batch, *shape)``.
    """
    if source is target:
        return value
    scale, ratio = conversion(source, target, *levels(schedule, t)[:2])
    return broadcast(scale, x) * (x + broadcast(ratio, x) * value)


def velocity_from_v(value: Tensor, *, x: Tensor, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Convert v = alpha eps - sigma x_0 (Salimans & Ho, 2022) into the velocity eps - x_0.

    With r^2 = alpha^2 + sigma^2 (1 for a variance-preserving schedule) r^2 x_0 = alpha x - sigma v
    and r^2 eps = sigma x + alpha v, so the velocity exists at every time.

    Args:
        value: v ``(batch, *shape)``.
        x: The state ``(batch, *shape)``.
        schedule: The noise schedule.
        t: The times ``(grid,)`` of the state.

    Returns:
        The velocity ``(batch, *shape)``.
    """
    alpha, sigma, _ = levels(schedule, t)
    square = alpha**2 + sigma**2
    state, own = (sigma - alpha) / square, (alpha + sigma) / square
    return broadcast(state, x) * x + broadcast(own, x) * value


def shift_scales(
    schedule: NoiseSchedule, native: Form, tau: Tensor, dtau: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the factors of input and output with which a time shift keeps the data prediction.

    A network asked at ``tau + dtau`` is shown the same x / s at the noise level of that time, so
    the state is multiplied by s(tau + dtau) / s(tau). The scale s is alpha for noise and
    alpha + sigma for velocity. Data predictions go with either; here with the one that the
    schedule leaves constant. The input factor is exactly 1 for EDM, and for flows unless noise is
    predicted.

    With x / s = D + c f, the same x / s and the same D make f larger by
    c(tau + dtau) / c(tau), so the output is multiplied by that. A data prediction needs no factor.

    Args:
        schedule: The noise schedule.
        native: The form of the network's answers.
        tau: Nodes, any shape.
        dtau: Time shifts of the same shape.

    Returns:
        The factors of input and output, shaped like ``tau``.
    """
    flow = native is Form.VELOCITY or (native is Form.DATA and schedule.domain == "time")
    form = Form.VELOCITY if flow else Form.NOISE
    here, asked = levels(schedule, tau)[:2], levels(schedule, tau + dtau)[:2]
    shown = form.scale_of(*asked) / form.scale_of(*here)
    if native is Form.DATA:
        return shown, torch.ones_like(tau)
    return shown, native.clock_of(*asked) / native.clock_of(*here)
