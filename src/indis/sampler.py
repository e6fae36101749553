"""A sampler: a policy and a solver, ready to turn noise into samples. Users call it and artifacts hold it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from indis.denoise import UNCONDITIONAL, Condition, Denoiser
from indis.noise import prior
from indis.policies import Attentive, Policy
from indis.solvers import Parallel, Solver, solve


@dataclass
class Sampler:
    """``analytic_first`` replaces the first network call by its closed form (AFS)."""

    policy: Policy
    solver: Solver
    analytic_first: bool = False

    @property
    def nfe(self) -> int:
        """Network evaluations a sample."""
        return self.solver.nfe(self.policy.steps) - self.analytic_first

    @property
    def depth(self) -> int:
        """Network evaluations one after another, fewer than :attr:`nfe` if some can be made at the same time."""
        count = self.solver.depth if isinstance(self.solver, Parallel) else self.solver.nfe
        return count(self.policy.steps) - self.analytic_first

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        condition: Condition = UNCONDITIONAL,
        *,
        index: Tensor | None = None,
        checkpoint: bool = False,
    ) -> Tensor:
        """Samples from unit ``noise`` ``(batch, *shape)``; same shape, in the denoiser's space.

        Raises:
            ValueError: if the noise does not fit the denoiser, or the denoiser lacks what the policy reads.
        """
        if tuple(noise.shape[1:]) != tuple(denoiser.shape):
            raise ValueError(f"noise must be (batch, *{tuple(denoiser.shape)}), got {tuple(noise.shape)}")
        plan = self.policy(noise, condition.features, index)
        if isinstance(plan, Attentive):
            plan.attach(denoiser, analytic_first=self.analytic_first)
        start = prior(denoiser.schedule, noise)
        options = {"analytic_first": self.analytic_first, "checkpoint": checkpoint}
        return solve(denoiser, start, plan, self.solver, condition, **options)
