"""AdaSDE (NeurIPS 2025): a midpoint rule with learned churn; each step after the first begins a
little noisier.

A step goes up from t to (1 + gamma) t with fresh noise and from there to the next node by one
midpoint, shifted and scaled as EPD's are. The fresh noise belongs to the sample
(:mod:`indis.methods.midpoint_table`), so one seed is still one sample. ``churn=0`` is the
deterministic form, bit for bit.

The authors train on the teacher's states and on features of the FID network at the end; here the
loss is on end points. Further departures: the random first tables are zeros; end points are a
stored set (there fresh noise); the rate warms up and follows the shared cosine to zero (there to
0.01); and gradients are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from indis.methods.midpoint_table import MidpointBounds, TwoStage
from indis.noise import Domain
from indis.recipe import Recipe


@dataclass(frozen=True)
class AdaSDE(TwoStage):
    """The authors' values for CIFAR-10."""

    name: ClassVar[str] = "adasde"

    s_time: float = 0.2
    """Largest change b of the noise level told at a midpoint: a factor 1 - b ... 1 + b."""
    churn: float = 0.02
    """Most fresh noise after a step, gamma_max of the papers; 0.01 for some of its data sets."""
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.2))
    """How it is tuned."""

    def _bounds(self, domain: Domain) -> MidpointBounds:
        return MidpointBounds(s_dir=self.s_dir, s_time=self.s_time, churn=self.churn, domain=domain)
