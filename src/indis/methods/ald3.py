r"""ALD3's one-shot model: LD3's stamps, predicted for each sample from its starting noise.

Source: github.com/ConnorReed246/ALD3 (2025), read for facts. It is the closest relative of INDIS
that came before it: no time shifts, no output scales, no condition.

.. math:: u_k = u_0 + (u_N - u_0) \sum_{j<k} p_j, \qquad p_j = softplus(z_j) / \sum_i softplus(z_i)

in a coordinate :math:`u`, log-SNR as published, with both ends fixed.

Where this departs from the released code: the head has N outputs, since of N + 1 one cancels in the
fixed ends; z has a constant part that makes the fractions those of a *base grid* where the network
says zero, as an untrained one does; Adam without weight decay (there AdamW with 1e-4) along the
shared cosine (there 0.95 every 100 updates), with its warm-up; intervals have a floor; the
library's trunk, which keeps where in the picture the noise lies (there two convolutional blocks and
a global average); a fixed set of end points; gradients are clipped before the update (there by a
slip before they exist); the loss is a field (published: LPIPS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis import solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser
from indis.logits import LOGIT_ROWS, Bounds, coordinate, from_logits
from indis.methods.method import Method
from indis.noise import SCHEDULES, Domain, NoiseSchedule
from indis.numerics import TIME_DTYPE, seeded
from indis.plan import Discretization
from indis.policies import Policy, shared_grid
from indis.policies.encoders import Encoder, check_shape
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.storage import describe, exactly, from_fields, rebuild

_TINY = 1e-7  # published: keeps the sum of the fractions from zero


class OneShot(Policy):
    """Predicts the interval fractions of each sample; untrained, it is its base bit for bit.

    Args:
        base: grid ``(1, steps + 1)``.
        schedule: noise schedule of the denoiser.
        bounds: of which only ``domain`` and ``floor`` matter.
        shape: of a sample.
        width: of the hidden layers.
        depth: number of hidden layers, for vectors.
    """

    base: Tensor
    offset: Tensor

    def __init__(
        self,
        base: Tensor,
        schedule: NoiseSchedule,
        bounds: Bounds,
        *,
        shape: tuple[int, ...],
        width: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.register_buffer("base", shared_grid(base))
        self.schedule, self.bounds, self.steps = schedule, bounds, base.shape[1] - 1
        self.shape, self.width, self.depth = tuple(shape), width, depth
        self.encoder, self.head = Encoder(self.shape, 0, width, depth), nn.Linear(width, self.steps)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("offset", self._offset(), persistent=False)

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Discretization:
        """Return each sample's plan."""
        raw = self.head(self.encoder(noise)).to("cpu", TIME_DTYPE)
        # A fraction is a softmax of logarithms: those of the shares, relative to the base grid's.
        moved = _log_share(raw + self.offset) - _log_share(self.offset)
        logits = F.pad(moved[:, None], (0, 0, 0, LOGIT_ROWS - 1))
        return from_logits(logits, self.base, self.schedule, self.bounds)

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser on which this policy would give wrong samples."""
        super().check(denoiser)
        check_shape(self.shape, tuple(denoiser.shape))

    def describe(self) -> dict[str, Any]:
        """Return what it is built from."""
        network = {name: getattr(self, name) for name in ("shape", "width", "depth")}
        parts = {"schedule": describe(self.schedule), "bounds": asdict(self.bounds)}
        return parts | {"network": network}

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the policy of this description and state."""
        network = exactly(config["network"], ("shape", "width", "depth"))
        network["shape"] = tuple(network["shape"])
        schedule = rebuild(config["schedule"], SCHEDULES)
        policy = cls(tensors["base"], schedule, from_fields(Bounds, config["bounds"]), **network)
        policy.load_state_dict(dict(tensors))
        return policy

    def _offset(self) -> Tensor:
        """The z whose softplus are the base grid's fractions times N, ``(1, steps)``."""
        to, _ = coordinate(self.schedule, self.bounds.domain)
        level = to(self.base)
        share = self.steps * level.diff(dim=1) / (level[:, -1:] - level[:, :1])
        return share + (-torch.expm1(-share)).log()


def _log_share(raw: Tensor) -> Tensor:
    return F.softplus(raw).clamp_min(_TINY).log()


@dataclass(frozen=True)
class ALD3(Method):
    """One fit; numbers are the released code's, the smallest of its budgets: 100 000 images.

    The rate is that of the whole network; a published one starts at random and nearly even in
    log-SNR, this one at ``grid``. ``domain`` ``None`` means what suits the denoiser's schedule
    (published: log-SNR, for EDM).

    Raises:
        ValueError: for fewer than two steps, which leave nothing to choose, or an unknown domain.
    """

    name: ClassVar[str] = "ald3"

    solver: str = "unipc:3:bh1"
    """Solver."""
    grid: str = "log_snr"
    """Grid that a fit starts at."""
    recipe: Recipe = field(
        default_factory=lambda: Recipe(iterations=33_333, batch=3, lr=5e-4, validate_every=500)
    )
    """How it is tuned."""
    domain: Domain | None = None
    """Domain in which nodes are spread. None is what suits the schedule."""
    width: int = 128
    """Width of the hidden layers."""
    depth: int = 3
    """Number of hidden layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, steps=2, width=1, depth=1)
        require_choice("domain", self.domain or "log_snr", Domain)

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """Return the base solver, bit for bit."""
        schedule = denoiser.schedule
        base = self.base(schedule)
        bounds = Bounds(dtau=0, gamma=0, domain=self.domain or schedule.domain)
        # The initial weights are part of the experiment's seed, and drawing them must not disturb
        # the caller's.
        with seeded(self.recipe.seed):
            policy = OneShot(
                base, schedule, bounds, shape=denoiser.shape, width=self.width, depth=self.depth
            )
        return Sampler(policy, solvers.named(self.solver), self.analytic_first)
