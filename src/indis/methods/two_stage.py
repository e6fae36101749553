"""What AMED, EPD and AdaSDE share: steps of two stages, first at a node, then at points inside the
step.
"""

from __future__ import annotations

from dataclasses import dataclass

from indis import grids, solvers
from indis.denoise import Denoiser
from indis.methods.method import Method
from indis.noise import Domain
from indis.policies import MidpointBounds, MidpointTable
from indis.sampler import Sampler
from indis.solvers import Midpoint, Solver


@dataclass(frozen=True)
class TwoStage(Method):
    """``steps`` counts whole steps. ``s_dir`` and ``s_time`` are the papers' bounds b of scales in
    [1 - b, 1 + b].

    ``domain`` is where r interpolates; ``None`` is what suits the denoiser's schedule, log-SNR (the
    papers' geometric mean) or a flow's time.

    Raises:
        ValueError: if a bound is out of range, or the solver is none of the method's.
    """

    steps: int = 3  # number of steps, two evaluations each in turn; 3, NFE 5 with AFS, are the papers' main setting
    # midpoint[:points[:order]]; AMED also takes a multistep solver without corrector
    solver: str = "midpoint"
    # "time_uniform" with rho = 1; others: natural, uniform, log_snr, polynomial, quadratic,
    # flow_shift or resolution, or list:T0,T1,... of times
    grid: str = "vp_time:1"
    analytic_first: bool = True  # AFS, as published: one evaluation less
    s_dir: float = 0.05  # the slope at a midpoint is scaled by at most 1 - b ... 1 + b
    s_time: float = 0.05  # the noise level told at a midpoint is scaled by at most 1 - b ... 1 + b
    domain: Domain | None = None  # in which nodes are spread; None: what suits the schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_solver(solvers.named(self.solver))
        self._bounds(self.domain or "log_snr")

    @property
    def freedoms(self) -> str:
        """Where midpoints lie, and what of their times, slopes, weights and churn has room to
        move.
        """
        bounds, solver = self._bounds("log_snr"), solvers.named(self.solver)
        sizes = {"time scales": bounds.s_time, "slope scales": bounds.s_dir, "churn": bounds.churn}
        weighted = isinstance(solver, Midpoint) and solver.points > 1
        return "+".join(
            ["midpoints", *(name for name, size in (sizes | {"weights": weighted}).items() if size)]
        )

    def bounds(self, denoiser: Denoiser) -> MidpointBounds:
        """The bounds in the terms of a denoiser's schedule."""
        return self._bounds(self.domain or denoiser.schedule.domain)

    @staticmethod
    def steps_for(nfe: int, *, analytic_first: bool = False) -> int:
        """N of 2N evaluations one after another, 2N - 1 with an analytic first step; see
        :attr:`Sampler.depth`.

        Raises:
            ValueError: if no number of steps does.
        """
        steps, rest = divmod(nfe + analytic_first, 2)
        if rest or steps < 1:
            possible = (
                "1, 3, 5, ... with an analytic first step" if analytic_first else "2, 4, 6, ..."
            )
            raise ValueError(f"nfe must be {possible} for a method of two stages a step, got {nfe}")
        return steps

    def _bounds(self, domain: Domain) -> MidpointBounds:
        return MidpointBounds(s_dir=self.s_dir, s_time=self.s_time, domain=domain)

    def _check_solver(self, solver: Solver) -> None:
        if not isinstance(solver, Midpoint):
            raise ValueError(
                f"solver must be midpoint[:points[:order]] for {type(self).__name__}, got {self.solver!r}"
            )


class Tabled(TwoStage):
    """A method whose sampler is a table that all samples share."""

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """The composite midpoint rule: each step's K midpoints at the middles of its K parts."""
        solver = solvers.named(self.solver)
        assert isinstance(solver, Midpoint)  # checked when the config was made
        base = grids.named(self.grid)(denoiser.schedule, self.steps)
        policy = MidpointTable(base, denoiser.schedule, self.bounds(denoiser), solver.points)
        return Sampler(policy, solver, self.analytic_first)
