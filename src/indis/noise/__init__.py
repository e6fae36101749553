r"""Noise schedules: what a time t means.

A noisy sample is :math:`x_t = \alpha(t) x_0 + \sigma(t) \epsilon`. A schedule is the pair
:math:`(\alpha, \sigma)` on ``[t_min, t_max]`` together with the log signal-to-noise ratio
:math:`\lambda = \log(\alpha / \sigma)`, decreasing in t, and its inverse. Every method is
elementwise and differentiable, and keeps dtype and shape, so each sample of a batch may have its
own time.

==============  =======================================  =====================================
schedule        :math:`\alpha, \sigma`                   used by
==============  =======================================  =====================================
EDM             1, t                                     EDM (Karras et al., 2022), VE
RectifiedFlow   1 - t, t                                 FLUX, SD3, LTX; flow matching OT
LinearVP        :math:`\exp(-I/2)`, linear beta          score SDE (Song et al., 2021)
ScaledLinearVP  :math:`\exp(-I/2)`, linear sqrt(beta)    latent diffusion, continuous in time
DiscreteVP      table of 1000 steps, interpolated        Stable Diffusion 1.x/2.x, SDXL
TableVP         any such table, interpolated             cosine, trained or rescaled betas
==============  =======================================  =====================================

where :math:`I(t) = \int_0^t \beta`.
"""

from indis.noise.clock import VPClock
from indis.noise.continuous import EDM, LinearVP, RectifiedFlow, ScaledLinearVP
from indis.noise.schedule import (
    Domain,
    NoiseSchedule,
    end_levels,
    is_start_time,
    levels,
    limit_shift,
    prior,
    ratio,
    same_levels,
    same_schedule,
    shifted,
    zero_time,
)
from indis.noise.tables import DiscreteVP, TableVP

# The schedules that stored names may become.
SCHEDULES = (EDM, RectifiedFlow, LinearVP, ScaledLinearVP, DiscreteVP, TableVP)

__all__ = [
    "EDM",
    "SCHEDULES",
    "DiscreteVP",
    "Domain",
    "LinearVP",
    "NoiseSchedule",
    "RectifiedFlow",
    "ScaledLinearVP",
    "TableVP",
    "VPClock",
    "end_levels",
    "is_start_time",
    "limit_shift",
    "levels",
    "prior",
    "ratio",
    "same_levels",
    "same_schedule",
    "shifted",
    "zero_time",
]
