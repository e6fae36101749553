"""One phi for every number of steps: ``indis fit --steps 3-10``. Beyond the paper.

An iteration tunes one N, in turn; small N, of which there is more to learn, come round more often.
Losses at different N differ by orders of magnitude, so each is divided by its own value: what
counts is by how much of itself it falls. The policy that is kept has the best geometric mean over
N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from indis import grids, solvers
from indis.denoise import Denoiser
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.methods.indis import INDIS
from indis.numerics import seeded
from indis.policies.any_steps import AnySteps
from indis.sampler import Sampler
from indis.sensitivity import balancing_scale, sensitivity
from indis.tuning import Fit, relative


@dataclass(frozen=True)
class EveryN(INDIS):
    """INDIS whose phi serves ``fewest`` ... ``steps`` steps. ``fit.iterations`` are shared out
    among them.

    Raises:
        ValueError: if there is no such range, or the plan is to be closed-loop or global.
    """

    steps: int = 10  # the largest N
    fewest: int = 3  # the smallest N
    # how much more iterations small N get: in proportion to 1 / N to this power; 0 gives all N as
    # many
    emphasis: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.fewest <= self.steps:
            raise ValueError(f"fewest must be in 1 ... steps = {self.steps}, got {self.fewest}")
        if not 0 <= self.emphasis <= 10:
            raise ValueError(f"emphasis must be in 0 ... 10, got {self.emphasis}")
        if self.look != "never" or not self.per_instance:
            raise ValueError(
                "look and per_instance must be left as they are for one phi for every N"
            )
        if solvers.named(self.solver).nfe(self.fewest) - self.analytic_first < 1:
            raise ValueError(
                f"fewest must be above {self.fewest} with an analytic first step: no call is left"
            )

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The base solver at each number of steps, bit for bit; ``steps`` is chosen."""
        solver, grid = solvers.named(self.solver), grids.named(self.grid)
        bases = [grid(denoiser.schedule, steps) for steps in range(self.fewest, self.steps + 1)]
        network = self.network(denoiser, solver.memory)
        with seeded(self.recipe.seed):
            policy = AnySteps(bases, denoiser.schedule, self.bounds(denoiser), **network)
        return Sampler(policy, solver, self.analytic_first)

    def begin(
        self, denoiser: Denoiser, data: Endpoints, loss: Loss, *, start: Sampler | None = None
    ) -> EveryFit:
        """Gradient descent over all numbers of steps in turn.

        Raises:
            ValueError: if ``start`` is given.
        """
        if start is not None:
            raise ValueError("start must be left out for EveryN, which begins at its own base")
        sampler = self.untrained(denoiser)
        policy = sampler.policy
        assert isinstance(policy, AnySteps)
        probes = self.recipe.parted(data)[0][: self.probes]
        for steps in policy.counts if self.probes else ():
            table = policy.table(steps)
            probe = Sampler(table, sampler.solver, self.analytic_first)
            rms = sensitivity(probe, denoiser, probes, loss, batch=self.recipe.scarce)
            table.scale.copy_(balancing_scale(rms))
        return EveryFit(
            sampler, denoiser, data, loss, self.recipe, self.settle, emphasis=self.emphasis
        )


def turns(counts: Sequence[int], emphasis: float, iterations: int) -> list[int]:
    """Whose turn each iteration is: as evenly spread as whole turns in proportion to ``1 / N **
    emphasis`` can be.
    """
    share = {n: (min(counts) / n) ** emphasis for n in counts}
    whole, had, order = sum(share.values()), dict.fromkeys(counts, 0), list[int]()
    for number in range(1, iterations + 1):
        lacks = {n: number * share[n] / whole - had[n] for n in counts}
        order.append(max(counts, key=lacks.__getitem__))
        had[order[-1]] += 1
    return order


class EveryFit(Fit):
    """A fit that goes round the numbers of steps."""

    def __init__(self, *fit: Any, emphasis: float) -> None:
        self.emphasis = emphasis
        super().__init__(*fit)
        self.turns = turns(self.policy.counts, emphasis, self.config.iterations)

    @property
    def policy(self) -> AnySteps:
        """The sampler's."""
        assert isinstance(self.sampler.policy, AnySteps)
        return self.sampler.policy

    def validate(self) -> float:
        """Geometric mean of the held-out losses over all numbers of steps."""
        logs = []
        for steps in self.policy.counts:
            with self._at(steps):
                logs.append(math.log(max(super().validate(), 1e-30)))
        return math.exp(sum(logs) / len(logs))

    def _objective(self, index: Tensor) -> tuple[Tensor, float]:
        with self._at(self.turns[self.step]):
            loss, value = super()._objective(index)
        return relative(loss), value

    def _subject(self) -> dict[str, Any]:
        return super()._subject() | {"emphasis": self.emphasis}

    @contextmanager
    def _at(self, steps: int) -> Iterator[None]:
        chosen = self.policy.steps
        self.policy.choose(steps)
        try:
            yield
        finally:
            self.policy.choose(chosen)
