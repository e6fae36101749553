"""What the methods share that compute one grid for all samples and learn nothing by gradient: GITS,
DMN, AYS.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from indis import grids, solvers
from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.methods.method import Method
from indis.policies import Fixed
from indis.sampler import Sampler
from indis.tuning import Search


@dataclass(frozen=True)
class GridMethod(Method):
    """A method whose outcome is a grid. ``fit`` gives the size of batches, the held-out part and
    the seed.
    """

    seeded: ClassVar[bool] = False

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The solver on the heuristic grid."""
        return self.on(grids.named(self.grid)(denoiser.schedule, self.steps))

    def begin(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> Search:
        """The search for the grid, as one piece of work.

        Raises:
            ValueError: if ``start`` is given.
        """
        if start is not None:
            raise ValueError(
                f"start must be left out for {type(self).__name__}, which begins at its own base"
            )

        def search(train: Endpoints) -> Fixed:
            return Fixed(self.best(denoiser, train, loss))

        return Search(self.untrained(denoiser), denoiser, data, loss, self.recipe, search)

    @abstractmethod
    def best(self, denoiser: Denoiser, train: Endpoints, loss: Loss) -> Tensor:
        """The grid ``(1, steps + 1)`` that the method finds."""

    def on(self, tau: Tensor) -> Sampler:
        """The method's solver on a grid ``(1, steps + 1)``."""
        return Sampler(Fixed(tau), solvers.named(self.solver), self.analytic_first)

    def batches(self, denoiser: Denoiser, data: Endpoints) -> Iterator[Endpoints]:
        """The endpoints, ``fit.batch`` at a time, on the denoiser's device."""
        return (
            to_device_of(data[i : i + self.recipe.batch], denoiser)
            for i in range(0, len(data), self.recipe.batch)
        )
