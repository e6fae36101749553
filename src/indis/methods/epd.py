"""EPD-Solver (Zhu et al., 2025; arXiv 2507.14797): K midpoints a step, asked in parallel, in one
learned table for all samples.

For every step and midpoint: where it lies (r), how its time and slope are scaled (s_time, s_dir),
and its weight (w). The paper counts the K midpoints of a step as one evaluation: that is
:attr:`Sampler.depth`, 2N less an analytic first step, while :attr:`Sampler.nfe` counts all (K + 1)
N network calls.

The authors train on features of the FID network at the end and, with more steps, on the teacher's
states. Here, as for all methods, the loss is on end points and gradients flow through the whole
run. Further departures from the released code: a stored set of end points (there fresh noise, 10
000 images in all); the rate warms up and follows the shared cosine to zero (there to 0.01);
gradients are clipped; the random first tables are zeros, and r keeps off the ends of its step
(:mod:`indis.methods.midpoint_table`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from indis.methods.midpoint_table import MidpointBounds, TwoStage
from indis.noise import Domain
from indis.recipe import Recipe


@dataclass(frozen=True)
class EPD(TwoStage):
    """The paper's values for CIFAR-10. ``solver`` says how many midpoints: "midpoint:K"."""

    name: ClassVar[str] = "epd"

    solver: str = "midpoint:2"
    """midpoint:K, with K midpoints a step."""
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.2))
    """How it is tuned."""

    def _bounds(self, domain: Domain) -> MidpointBounds:
        # s = 1 - b + 2b sigmoid(raw / 2), which is 1 + b tanh(raw / 4)
        return MidpointBounds(s_dir=self.s_dir, s_time=self.s_time, squash=4.0, domain=domain)


@dataclass(frozen=True)
class EPDPlugin(EPD):
    """On iPNDM: midpoints are predicted with the fourth-order history of the nodes' slopes.

    Bounds and rate are those of the released code's plugin settings.
    """

    name: ClassVar[str] = "epd-plugin"

    solver: str = "midpoint:2:4"
    """midpoint:K:order, with K midpoints a step."""
    grid: str = "natural"
    """Grid that a fit starts at."""
    s_time: float = 0.2
    """Largest change b of the noise level told at a midpoint: a factor 1 - b ... 1 + b."""
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.1))
    """How it is tuned."""
