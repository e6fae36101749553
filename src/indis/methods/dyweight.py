"""DyWeight (arXiv 2603.11607): global, unconstrained multistep weights and time scales, and the
time they really reach.

The rule, and how it becomes a plan of the one loop, is in :mod:`indis.policies.dyweight`.

Where this departs from the released code: endpoints come from a stored set, not from a teacher run
in each update; the rate follows the shared warm-up and cosine to zero (there to 1 %); the time that
weights reach is kept inside its interval (:mod:`indis.policies.tracking`); and the loss is a field
(published: squared distance of Inception features).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from indis import grids, solvers
from indis.denoise import Denoiser
from indis.methods.method import Method
from indis.numerics import TIME_DTYPE
from indis.policies.dyweight import DyWeightPolicy
from indis.sampler import Sampler
from indis.solvers.adams import EVEN_WEIGHTS
from indis.tuning import Recipe


@dataclass(frozen=True)
class DyWeight(Method):
    """One fit; numbers are the released code's for CIFAR-10 (smaller rates for the rest, 5e-4 for
    Stable Diffusion).

    The solver's order is the width of the causal band (2 for Stable Diffusion and Flux).
    ``analytic_first`` is on as published (off for Stable Diffusion).

    Raises:
        ValueError: for a solver that is not iPNDM.
    """

    analytic_first: bool = True  # AFS, as published: one evaluation less
    tracking: bool = (
        True  # nodes follow the sum of the weights; without, a sum only scales the step
    )
    recipe: Recipe = field(default_factory=lambda: Recipe(iterations=625, batch=16, lr=3e-2))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(solvers.named(self.solver), solvers.IPNDM):
            raise ValueError(
                f"solver must be ipndm:1 ... ipndm:4 for DyWeight, got {self.solver!r}"
            )

    @property
    def freedoms(self) -> str:
        """Weights, which move the nodes too if they are tracked, and scales of the times asked
        about.
        """
        return "weights+time scales"

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The sampler before any tuning: iPNDM, to rounding."""
        solver, schedule = solvers.named(self.solver), denoiser.schedule
        policy = DyWeightPolicy(
            grids.named(self.grid)(schedule, self.steps),
            ipndm_rows(self.steps, solver.memory),
            schedule,
            form=solver.form(denoiser.native, denoiser.schedule),
            native=denoiser.native,
            tracking=self.tracking,
            analytic_first=self.analytic_first,
        )
        return Sampler(policy, solver, self.analytic_first)


def ipndm_rows(steps: int, order: int) -> Tensor:
    """The weights of iPNDM's steps, ``(steps, order)``, newest answer first; zero where there is no
    answer yet.
    """
    rows = [EVEN_WEIGHTS[min(order, k + 1)] for k in range(steps)]
    return torch.tensor([[*row, *[0.0] * (order - len(row))] for row in rows], dtype=TIME_DTYPE)
