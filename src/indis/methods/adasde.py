"""AdaSDE (NeurIPS 2025): a midpoint rule with learned churn; each step after the first begins a
little noisier.

A step goes up from t to (1 + gamma) t with fresh noise and from there to the next node by one
midpoint, shifted and scaled as EPD's are. The fresh noise belongs to the sample
(:mod:`indis.policies.churn`), so one seed is still one sample. ``churn=0`` is the deterministic
form, bit for bit.

The authors train on the teacher's states and on features of the FID network at the end; here the
loss is on end points. Their random first tables are zeros here, see :mod:`indis.policies.midpoint`;
end points are a stored set (there fresh noise), the rate warms up and follows the shared cosine to
zero (there to 0.01), and gradients are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from indis.methods.two_stage import Tabled
from indis.noise import Domain
from indis.policies import MidpointBounds
from indis.tuning import Recipe


@dataclass(frozen=True)
class AdaSDE(Tabled):
    """The authors' values for CIFAR-10."""

    s_dir: float = 0.05  # the slope at a midpoint is scaled by at most 1 - b ... 1 + b
    s_time: float = 0.2  # the noise level told at a midpoint is scaled by at most 1 - b ... 1 + b
    churn: float = (
        0.02  # most fresh noise after a step, the papers' gamma_max; 0.01 for some of its data sets
    )
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.2))

    def _bounds(self, domain: Domain) -> MidpointBounds:
        return MidpointBounds(s_dir=self.s_dir, s_time=self.s_time, churn=self.churn, domain=domain)
