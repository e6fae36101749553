"""What a method is: a frozen config that says where a sampler starts and how it is tuned.

A method is one file: a dataclass whose fields are its hyper-parameters, with the paper's values as
defaults, beside its policy if it needs one of its own. :meth:`Method.untrained` is the sampler
before any tuning; :meth:`Method.tuning` is plain descent on the loss unless a method has its own
way. Commands and comparisons are shared by all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from indis import grids, solvers
from indis.checks import require_least
from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.noise import NoiseSchedule
from indis.plan import Discretization
from indis.policies import Fixed
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.tuning import Fit, Search, Tuning


@dataclass(frozen=True)
class Method(ABC):
    """The fields that all methods share; subclasses change defaults and add their own.

    ``name`` is what commands call a method.

    Raises:
        ValueError: for an unknown solver or grid, or fewer than one step.
    """

    name: ClassVar[str]

    steps: int = 5
    """Number of steps N."""
    solver: str = "ipndm:3"
    """Solver."""
    grid: str = "natural"
    """Grid that a fit starts at."""
    analytic_first: bool = False
    """Replace the first evaluation by its closed form (AFS), which saves one."""
    loss: str = "mse"
    """Distance to the teacher's endpoints."""
    recipe: Recipe = field(default_factory=Recipe)
    """How it is tuned."""

    def __post_init__(self) -> None:
        require_least(self, steps=1)
        solvers.named(self.solver)
        grids.named(self.grid)

    @property
    def freedoms(self) -> str:
        """What a plan may choose: the times, and what has a bound above zero."""
        sizes = {name: getattr(self, name, 0) for name in ("dtau", "gamma", "weights")}
        return "+".join(["tau", *(name for name, size in sizes.items() if size)])

    def with_recipe(self, **changes: Any) -> Self:
        """Return this config with a changed recipe, as ``with_recipe(iterations=100, batch=32)``.

        Raises:
            ValueError: if a recipe has no such field, or a value is out of range.
        """
        known = [f.name for f in fields(Recipe)]
        if unknown := sorted(set(changes) - set(known)):
            raise ValueError(f"recipe has {', '.join(known)}, got {', '.join(unknown)}")
        return replace(self, recipe=replace(self.recipe, **changes))

    def base(self, schedule: NoiseSchedule) -> Tensor:
        """Return the grid ``(1, steps + 1)`` that a fit starts at.

        Raises:
            ValueError: if it ends at zero noise, where most methods have no step.
        """
        grid = grids.resolve_grid(self.grid, schedule, to_zero=False)
        tau = grids.named(grid)(schedule, self.steps)
        if grids.ends_at_zero(schedule, tau):
            raise ValueError(
                f"grid must end at t_min for {type(self).__name__}, got {self.grid!r}, which ends "
                "at zero noise"
            )
        return tau

    @abstractmethod
    def untrained(self, denoiser: Denoiser) -> Sampler:
        """Return the sampler before any tuning."""

    def tuning(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> Tuning:
        """Return a tuning that is ready to run.

        Args:
            denoiser: the model.
            data: the teacher's end points.
            loss: of a batch, one number a sample.
            start: a fitted sampler to begin at, for a method that can.

        Raises:
            ValueError: if ``start`` is given to a method that begins at its own base.
        """
        self.refuse_start(start)
        return Fit(self.untrained(denoiser), denoiser, data, loss, self.recipe)

    def refuse_start(self, start: Sampler | None) -> None:
        """Raise if a sampler to begin at is given.

        Raises:
            ValueError: if it is.
        """
        if start is not None:
            raise ValueError(
                f"start must be left out for {type(self).__name__}, which begins at its own base"
            )

    @staticmethod
    def steps_for(nfe: int, *, analytic_first: bool = False) -> int:
        """Return the number of steps that costs ``nfe`` network evaluations one after another.

        Raises:
            ValueError: if no number of steps does.
        """
        return nfe + analytic_first


@dataclass(frozen=True)
class GridMethod(Method):
    """A method that computes one grid for all samples and learns nothing by gradient.

    The recipe gives the size of batches, the held-out part and the seed.
    """

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """Return the solver on the grid that the search starts at."""
        return self.on(self.base(denoiser.schedule))

    def tuning(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> Search:
        """Return the search for the grid.

        Raises:
            ValueError: if ``start`` is given.
        """
        self.refuse_start(start)

        def search(train: Endpoints) -> Fixed:
            return Fixed(self.best(denoiser, train, loss))

        return Search(self.untrained(denoiser), denoiser, data, loss, self.recipe, search)

    @abstractmethod
    def best(self, denoiser: Denoiser, train: Endpoints, loss: Loss) -> Tensor:
        """Return the grid ``(1, steps + 1)`` that the method finds."""

    def on(self, tau: Tensor) -> Sampler:
        """Return the method's solver on a grid ``(1, steps + 1)``."""
        return Sampler(Fixed(tau), solvers.named(self.solver), self.analytic_first)

    def batches(self, denoiser: Denoiser, data: Endpoints) -> Iterator[Endpoints]:
        """Yield the end points batch by batch, on the denoiser's device."""
        size = self.recipe.batch
        for start in range(0, len(data), size):
            yield to_device_of(data[start : start + size], denoiser)


def heuristic(
    denoiser: Denoiser,
    *,
    solver: str = "ipndm:3",
    grid: str = "natural",
    steps: int = 5,
    analytic_first: bool = False,
    to_zero: bool | None = None,
) -> Sampler:
    """Return a plain solver on a named grid, without any learning.

    Args:
        denoiser: the model.
        solver: name of the solver.
        grid: name of the grid.
        steps: number of steps.
        analytic_first: whether the first answer comes from its closed form.
        to_zero: whether the last step goes to zero noise; None: what the grid's name says, and yes
            for the natural grid of a table such as Stable Diffusion's.

    Raises:
        ValueError: for an unknown solver or grid, or one that ends at zero noise if it must not.
    """
    ends = f"+{grids.ZERO}"
    if to_zero is False and grid.endswith(ends):
        raise ValueError(f"to_zero must be True or None for grid {grid!r}, got False")
    spec = grid + ends if to_zero and not grid.endswith(ends) else grid
    spec = grids.resolve_grid(spec, denoiser.schedule, to_zero=to_zero is not False)
    tau = grids.named(spec)(denoiser.schedule, steps)
    return Sampler(plain(tau, denoiser.schedule), solvers.named(solver), analytic_first)


def plain(tau: Tensor, schedule: NoiseSchedule) -> Fixed:
    """Return the policy of a grid ``(1, steps + 1)`` as it is, to zero noise if it ends there."""
    to_zero = grids.ends_at_zero(schedule, tau)
    return Fixed(Discretization.plain(tau, to_zero=to_zero))
