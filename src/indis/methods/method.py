"""What a method is: a frozen config that says where a sampler starts and how it is tuned on teacher
endpoints.

A method is one file: a dataclass whose fields are its hyper-parameters, with the paper's values as
defaults. It says what the sampler is before any tuning (:meth:`Method.untrained`) and, unless plain
descent on the loss is all there is to it, how it is tuned (:meth:`Method.begin`). Everything else,
commands and comparisons included, is shared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

from indis import grids, solvers
from indis.checks import require_least
from indis.denoise import Denoiser
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.policies import Fixed
from indis.sampler import Sampler
from indis.starts import Starts
from indis.tuning import Fit, Recipe, Tuning


@dataclass(frozen=True)
class Method(ABC):
    """The fields that all methods share; subclasses change defaults and add their own.

    Raises:
        ValueError: for an unknown solver or grid, or fewer than one step.
    """

    seeded: ClassVar[bool] = (
        True  # a fit depends on its seed, so several beginnings may end elsewhere
    )

    steps: int = 5  # number of steps N
    # euler, heun, ipndm, adams_bashforth, deis, dpmpp, unipc or midpoint, as name[:order[:variant]]
    solver: str = "ipndm:3"
    # where it starts: natural (polynomial:7, or uniform for a flow), uniform, log_snr, polynomial,
    # quadratic, vp_time, flow_shift or resolution, as name[:parameter], or list:T0,T1,... of times
    grid: str = "natural"
    analytic_first: bool = False  # AFS: the first answer by its closed form, one evaluation less
    loss: str = "mse"  # distance that is tuned: mse, squared, fashion, fashion-dists or lpips
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        require_least(self, steps=1)
        solvers.named(self.solver)
        grids.named(self.grid)

    @property
    def freedoms(self) -> str:
        """What it may choose, as a comparison's rows name it: the timesteps, and what has a bound
        above zero.
        """
        sizes = {name: getattr(self, name, 0) for name in ("dtau", "gamma", "weights")}
        return "+".join(["tau", *(name for name, size in sizes.items() if size)])

    @abstractmethod
    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The sampler before any tuning."""

    def tuning(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> Tuning:
        """A tuning that is ready to run, with as many beginnings as ``fit.starts`` says.

        Raises:
            ValueError: if ``start``, a fitted sampler to begin at, is given to a method that has no
                use for it, or
                several beginnings to one that has no seed.
        """
        seeds = [
            self.recipe.seed * self.recipe.starts + i for i in range(self.recipe.starts)
        ]  # others for another seed
        methods = [
            replace(self, recipe=replace(self.recipe, seed=seed, starts=1)) for seed in seeds
        ]
        runs = [method.begin(denoiser, data, loss, start=start) for method in methods]
        return runs[0] if len(runs) == 1 else Starts(runs)

    def begin(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> Tuning:
        """A tuning from one beginning; gradient descent on the loss unless a method has its own
        way.

        Raises:
            ValueError: if ``start``, a fitted sampler to begin at, is given to a method that has no
                use for it.
        """
        if start is not None:
            raise ValueError(
                f"start must be left out for {type(self).__name__}, which begins at its own base"
            )
        return Fit(self.untrained(denoiser), denoiser, data, loss, self.recipe)

    @staticmethod
    def steps_for(nfe: int, *, analytic_first: bool = False) -> int:
        """The number of steps that costs ``nfe`` network evaluations one after another, on a solver
        of one a step.

        Raises:
            ValueError: if no number of steps does.
        """
        return nfe + analytic_first


def heuristic(
    denoiser: Denoiser, *, solver: str, grid: str, steps: int, analytic_first: bool = False
) -> Sampler:
    """A plain sampler on a named grid: no learning."""
    tau = grids.named(grid)(denoiser.schedule, steps)
    return Sampler(Fixed(tau), solvers.named(solver), analytic_first)
