r"""SpanLift (arXiv 2606.08672): a spatial residual network on a fixed base solver.

After every evaluation a small network reads each place and adds a residual to the step of a base
solver whose plan all samples share and which stays as it is. It is trained by matching the
teacher's end points, and adds no evaluation.

No code was released, and only the paper's abstract and first pages were at hand, so this is *like*
SpanLift. From the paper: the fixed base, what the network reads (the state and a buffer of
velocities), the matching of end points. Ours: the network, which is the one of *local*
(:mod:`indis.policies.spatial`) with a free picture alone; velocities are read as denoised samples,
the latest and its change, which together with the state say the same; the recipe. The paper's base
is a learned solver; here it is the base grid, or with ``start`` any fitted plan that all samples
share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from indis import solvers
from indis.checks import require_least
from indis.denoise import Denoiser, Form
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.methods.method import Method
from indis.noise import SCHEDULES, NoiseSchedule
from indis.numerics import seeded
from indis.plan import Discretization, Plan
from indis.policies import Fixed, Policy
from indis.policies.closed import ClosedLoop
from indis.policies.encoders import check_shape
from indis.policies.spatial import SpatialCorrector
from indis.sampler import Sampler
from indis.storage import describe, rebuild, section
from indis.tuning import Fit


class Lifted(Policy):
    """A fixed plan, and a network that corrects each place of the sample.

    Args:
        base: the plan.
        schedule: noise schedule of the denoiser.
        native: form of the denoiser's answers.
        shape: of a sample.
        condition_dim: number of condition features that the network reads; 0 for none.
        width: channels of the network.
    """

    def __init__(
        self,
        base: Fixed,
        schedule: NoiseSchedule,
        native: Form,
        shape: tuple[int, ...],
        condition_dim: int,
        width: int,
    ) -> None:
        super().__init__()
        self.base, self.schedule, self.native = base, schedule, native
        self.shape, self.condition_dim, self.width = tuple(shape), condition_dim, width
        self.steps, self.order, self.to_zero = base.steps, base.order, base.to_zero
        self.corrector = SpatialCorrector(self.shape, self.steps, condition_dim, "free", width)

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """Return the plan, whose corrections are made on the way."""
        shared = self.base.shared_plan()

        def remaining(k: int, tau: Tensor, observed: Tensor) -> Discretization:
            return shared

        correct = partial(self.corrector, features=features)
        return ClosedLoop(shared, remaining, False, self.schedule, self.native, correct)

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser on which this policy would give wrong samples."""
        super().check(denoiser)
        check_shape(self.shape, tuple(denoiser.shape))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters: all of them correct pictures."""
        return {"picture": list(self.parameters())}

    def describe(self) -> dict[str, Any]:
        """Return all arguments, the columns of the plan apart."""
        return {
            "base": self.base.describe(),
            "schedule": describe(self.schedule),
            "native": self.native.value,
            "shape": list(self.shape),
            "condition_dim": self.condition_dim,
            "width": self.width,
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the policy of this description and state."""
        policy = cls(
            Fixed.rebuild(config["base"], section(tensors, "base.")),
            rebuild(config["schedule"], SCHEDULES),
            Form(config["native"]),
            tuple(config["shape"]),
            config["condition_dim"],
            config["width"],
        )
        policy.load_state_dict(dict(tensors))
        return policy


@dataclass(frozen=True)
class SpanLift(Method):
    """A spatial residual network on a fixed plan.

    Raises:
        ValueError: for a number outside its range.
    """

    name: ClassVar[str] = "spanlift"

    width: int = 24
    """Channels of the network that corrects places."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, width=1)

    @property
    def freedoms(self) -> str:
        """A free picture alone."""
        return "local free"

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """Return the base solver, bit for bit."""
        solver = solvers.named(self.solver)
        base = Sampler(Fixed(self.base(denoiser.schedule)), solver, self.analytic_first)
        return self.lifted(base, denoiser)

    def lifted(self, base: Sampler, denoiser: Denoiser) -> Sampler:
        """Return a sampler of a shared plan with an untrained network."""
        features = denoiser.condition([0]).features
        with seeded(self.recipe.seed):
            policy = Lifted(
                Fixed(base.policy.shared_plan().detach()),
                denoiser.schedule,
                denoiser.native,
                tuple(denoiser.shape),
                0 if features is None else features.shape[-1],
                self.width,
            )
        return replace(base, policy=policy)

    def tuning(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> Fit:
        """Return the gradient descent.

        Args:
            denoiser: the model.
            data: the teacher's end points.
            loss: of a batch, one number a sample.
            start: a fitted sampler whose plan all samples share, as the base.

        Raises:
            ValueError: if the plan of ``start`` depends on what it reads.
            TypeError: if ``start`` has no plan that all samples share.
        """
        sampler = self.untrained(denoiser)
        if start is not None:
            reads = getattr(start.policy, "reads", "nothing")
            if reads != "nothing":
                raise ValueError(
                    f"start must have a plan that all samples share, got one of {reads}"
                )
            sampler = self.lifted(start, denoiser)
        # No plan is learned that the network would have to wait for.
        return Fit(sampler, denoiser, data, loss, replace(self.recipe, settle=0.0))
