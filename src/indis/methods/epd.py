"""EPD-Solver (Zhu et al., 2025; arXiv 2507.14797): K midpoints a step, asked in parallel, one
learned table for all.

For every step and midpoint: where it lies (r), how its time and slope are scaled (s_time, s_dir),
and its weight (w). The paper counts the K midpoints of a step as one evaluation: that is
:attr:`Sampler.depth`, 2N less an analytic first step, while :attr:`Sampler.nfe` counts all (K + 1)
N network calls.

The authors train on features of the FID network at the end and, with more steps, on the teacher's
states. Here, as for all methods, the loss is on end points and gradients flow through the whole
run. Further departures from the released code: a stored set of end points (there fresh noise, 10
000 images in all); the rate warms up and follows the shared cosine to zero (there to 0.01);
gradients are clipped; and the random first tables are zeros and r keeps off the ends of its step,
see :mod:`indis.policies.midpoint`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from indis.methods.two_stage import Tabled
from indis.noise import Domain
from indis.policies import MidpointBounds
from indis.tuning import Recipe


@dataclass(frozen=True)
class EPD(Tabled):
    """The paper's values for CIFAR-10. ``solver`` says how many midpoints: "midpoint:K"."""

    # K = 2; midpoint:K
    solver: str = "midpoint:2"
    s_dir: float = 0.05  # the slope at a midpoint is scaled by at most 1 - b ... 1 + b
    s_time: float = 0.05  # the noise level told at a midpoint is scaled by at most 1 - b ... 1 + b
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.2))

    def _bounds(self, domain: Domain) -> MidpointBounds:
        # s = 1 - b + 2b sigmoid(raw / 2), which is 1 + b tanh(raw / 4)
        return MidpointBounds(s_dir=self.s_dir, s_time=self.s_time, squash=4.0, domain=domain)


@dataclass(frozen=True)
class EPDPlugin(EPD):
    """On iPNDM: midpoints are predicted with the fourth-order history of the nodes' slopes.

    Bounds and rate are those of the released code's plugin settings.
    """

    # midpoint:K:order
    solver: str = "midpoint:2:4"
    # where it starts: natural (polynomial:7, or uniform for a flow), uniform, log_snr, polynomial,
    # quadratic, vp_time, flow_shift or resolution, as name[:parameter], or list:T0,T1,... of times
    grid: str = "natural"
    s_time: float = 0.2  # the noise level told at a midpoint is scaled by at most 1 - b ... 1 + b
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.1))
