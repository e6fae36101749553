"""ALD3's one-shot model: LD3's stamps, predicted for each sample from its starting noise.

Source: github.com/ConnorReed246/ALD3 (2025), read for facts; the policy is
:mod:`indis.policies.one_shot`. It is the closest relative of INDIS that came before it: no time
shifts, no output scales, no condition.

Where this departs from the released code: Adam without weight decay (there AdamW with 1e-4) along
the shared cosine (there 0.95 every 100 updates), with its warm-up; intervals have a floor; the
library's trunk, which keeps where in the picture the noise leans (there two convolutional blocks
and a global average); a fixed set of endpoints; gradients are clipped before the update (there by a
slip before they exist); the loss is a field (published: LPIPS).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from indis import grids, solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser
from indis.methods.method import Method
from indis.noise import Domain
from indis.numerics import seeded
from indis.plan import Bounds
from indis.policies.one_shot import OneShot
from indis.sampler import Sampler
from indis.tuning import Recipe


@dataclass(frozen=True)
class ALD3(Method):
    """One fit; numbers are the released code's, the smallest of its budgets: 100 000 images.

    The rate is that of the whole network; a published one starts at random and nearly even in
    log-SNR, this one at ``grid``. ``domain`` ``None`` means what suits the denoiser's schedule
    (published: log-SNR, for EDM).

    Raises:
        ValueError: for fewer than two steps, which leave nothing to choose, or an unknown domain.
    """

    # euler, heun, ipndm, adams_bashforth, deis, dpmpp, unipc or midpoint, as name[:order[:variant]]
    solver: str = "unipc:3:bh1"
    # where it starts: natural (polynomial:7, or uniform for a flow), uniform, log_snr, polynomial,
    # quadratic, vp_time, flow_shift or resolution, as name[:parameter], or list:T0,T1,... of times
    grid: str = "log_snr"
    recipe: Recipe = field(
        default_factory=lambda: Recipe(iterations=33_333, batch=3, lr=5e-4, validate_every=500)
    )
    domain: Domain | None = None  # in which nodes are spread; None: what suits the schedule
    width: int = 128  # of the hidden layers
    depth: int = 3  # number of hidden layers

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, steps=2, width=1, depth=1)
        require_choice("domain", self.domain or "log_snr", Domain)

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The sampler before any tuning: equal to its base solver, bit for bit."""
        schedule = denoiser.schedule
        base = grids.named(self.grid)(schedule, self.steps)
        bounds = Bounds(dtau=0, gamma=0, domain=self.domain or schedule.domain)
        # The initial weights are part of the experiment's seed, and drawing them must not disturb
        # the caller's.
        with seeded(self.recipe.seed):
            policy = OneShot(
                base, schedule, bounds, shape=denoiser.shape, width=self.width, depth=self.depth
            )
        return Sampler(policy, solvers.named(self.solver), self.analytic_first)
