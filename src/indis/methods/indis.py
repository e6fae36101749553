"""INDIS (arXiv 2603.17671): tune phi(x_T, c) on teacher endpoints. Its baselines and ablations are
fields, not copies:

=====================================  =======================================
field                                  what it gives
=====================================  =======================================
``per_instance=False``                 one learned plan for all (GOD)
``dtau=0``, ``gamma=0``                without time shifts, without scales
``use_condition=False``                phi sees the noise alone
``keep="answer"``                      a shift changes the data prediction, as in Eq. 5
``weights=b``                          also corrects multistep weights by up to b
``look="first"``, ``look="every"``     decides after evaluations too (closed loop)
=====================================  =======================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from indis import grids, solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.methods.method import Method
from indis.noise import Domain
from indis.numerics import seeded
from indis.plan import Bounds, Keep, Shift
from indis.policies import ClosedLoop, Global, Instance, LogitPolicy
from indis.sampler import Sampler
from indis.sensitivity import balancing_scale, sensitivity
from indis.tuning import Fit, Recipe

Look = Literal["never", "first", "every"]


@dataclass(frozen=True)
class INDIS(Method):
    """One fit; the base grid is where an untrained phi starts.

    Paper: iPNDM, LPIPS, an analytic first step "when it helps"; the order is ours. ``None`` means
    what suits the denoiser's schedule (see :meth:`Bounds.natural`).

    Raises:
        ValueError: for a number outside its range, or if a plan for all samples is to look at one.
    """

    loop: ClassVar[type[ClosedLoop]] = ClosedLoop  # what looks

    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.3))
    per_instance: bool = True  # a plan of its own for each sample (phi); without, one for all
    use_condition: bool = True  # phi reads the condition besides the noise
    dtau: float = 0.5  # largest time shift, b of Eq. 6, in the unit of --shift; 0 for none
    gamma: float = 0.5  # largest change of the answer's scale, b of Eq. 6; 0 for none
    # largest correction of the multistep weights, not in the paper; 0 for none
    weights: float = 0.0
    # unit of a time shift: share of log-SNR, of the next interval, or time; None: what suits the
    # schedule
    shift: Shift | None = None
    # what a time shift leaves as it is; "answer": the paper's Eq. 5 as it stands
    keep: Keep = "data"
    domain: Domain | None = None  # in which nodes are spread; None: what suits the schedule
    look: Look = "never"  # when phi reads the answers that it gets; never: the paper's open loop
    probes: int = 64  # end points that measure how sensitive each logit is (ours); 0 gives all logits the same rate
    # part of the iterations in which phi's network waits for the plan that all samples share (ours)
    settle: float = 0.2
    width: int = 128  # of the hidden layers of phi
    depth: int = 3  # number of hidden layers of phi

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, probes=0, width=1, depth=1)
        if not 0 <= self.settle < 1:
            raise ValueError(f"settle must be in [0, 1), got {self.settle}")
        chosen: dict[str, Any] = {
            "shift": self.shift or "relative",
            "domain": self.domain or "log_snr",
        }
        # Refuses what is out of range or unknown.
        Bounds(dtau=self.dtau, gamma=self.gamma, weights=self.weights, keep=self.keep, **chosen)
        require_choice("look", self.look, Look)
        if self.look != "never" and not self.per_instance:
            raise ValueError(
                f"look must be never for a plan that all samples share, got {self.look!r}"
            )
        if self.look == "first" and self.analytic_first and not self.loop.corrects:
            raise ValueError(
                "look must be every or never with an analytic first step, whose answer says nothing new"
            )

    def bounds(self, denoiser: Denoiser) -> Bounds:
        """The bounds in the terms of a denoiser's schedule."""
        given = {"shift": self.shift, "domain": self.domain}
        chosen = {name: value for name, value in given.items() if value is not None}
        sizes = {"dtau": self.dtau, "gamma": self.gamma, "weights": self.weights}
        return Bounds.natural(denoiser.schedule, keep=self.keep, **sizes, **chosen)

    def network(self, denoiser: Denoiser, order: int) -> dict[str, Any]:
        """What a phi for this denoiser is built from; ``order`` is how many multistep weights a
        step has.
        """
        features = denoiser.condition([0]).features if self.use_condition else None
        return {
            "shape": denoiser.shape,
            "condition_dim": 0 if features is None else features.shape[-1],
            "width": self.width,
            "depth": self.depth,
            "order": order,
        }

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The sampler before any tuning: equal to its base solver, bit for bit."""
        solver = solvers.named(self.solver)
        base = grids.named(self.grid)(denoiser.schedule, self.steps)
        return Sampler(_policy(self, denoiser, base, solver.memory), solver, self.analytic_first)

    def begin(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> Fit:
        """Gradient descent. ``start`` is a fitted global plan that phi begins at, to learn what an
        instance adds.

        Raises:
            ValueError: if ``start`` is not a global plan, or phi cannot begin there.
        """
        sampler = self.untrained(denoiser)
        if start is not None:
            if not (isinstance(sampler.policy, Instance) and isinstance(start.policy, Global)):
                raise ValueError(
                    "start must be a fitted global plan, and the policy to fit per instance"
                )
            if (start.solver, start.analytic_first) != (sampler.solver, sampler.analytic_first):
                raise ValueError(
                    f"start must have been fitted on {sampler.solver} with analytic_first {sampler.analytic_first}, "
                    f"got {start.solver} with {start.analytic_first}"
                )
            sampler.policy.start_at(start.policy)
        elif self.probes:
            probes = self.recipe.parted(data)[0][: self.probes]
            rms = sensitivity(sampler, denoiser, probes, loss, batch=self.recipe.scarce)
            sampler.policy.get_buffer("scale").copy_(balancing_scale(rms))
        return Fit(sampler, denoiser, data, loss, self.recipe, self.settle)


def _policy(config: INDIS, denoiser: Denoiser, base: torch.Tensor, order: int) -> LogitPolicy:
    bounds = config.bounds(denoiser)
    if not config.per_instance:
        return Global(base, denoiser.schedule, bounds, order)
    network = config.network(denoiser, order)
    # The initial weights of phi are part of the experiment's seed, and drawing them must not
    # disturb the caller's.
    with seeded(config.recipe.seed):
        if config.look == "never":
            return Instance(base, denoiser.schedule, bounds, **network)
        return config.loop(
            base, denoiser.schedule, bounds, native=denoiser.native, look=config.look, **network
        )
