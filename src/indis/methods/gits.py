r"""GITS (arXiv 2405.11326): the best nodes of a fine teacher grid, found by dynamic programming;
nothing is trained.

Sampling trajectories bend at the same times whatever their start, so where a long step is safe can
be measured once. A teacher visits :math:`y_0 \dots y_M` with slopes :math:`f_i`. Leaving at i to
arrive at j costs what one Euler jump

.. math:: \hat y_{ij} = y_i + (c_j - c_i) f_i

misses of :math:`y_j`, and a grid of N steps is the cheapest path of N jumps from 0 to M,

.. math:: V_1(i) = cost_{iM}, \qquad V_k(i) = \min_j cost_{ij} + coeff \cdot V_{k-1}(j).

Here y = x / s and c are the state over the scale and the clock of the denoiser's drift form
(:mod:`indis.denoise`), in which an Euler jump is a straight line: the paper's VE variables for
noise prediction under any schedule, x and t themselves for a rectified flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from indis import solvers
from indis.checks import require_choice, require_least
from indis.denoise import Denoiser, convert
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.methods.method import GridMethod
from indis.noise import prior
from indis.numerics import broadcast
from indis.plan import Decision, Discretization, PlanWrapper
from indis.solvers import Solver, solve
from indis.solvers.base import drift_form

Metric = Literal["l1", "l2", "dev"]


@dataclass(frozen=True)
class GITS(GridMethod):
    """Training-free; ``grid`` is the kind of the teacher's grid and of the start.

    With ``analytic_first`` the path has one jump less and one more node goes before its first, the
    one whose samples end nearest to the teacher's; the first interval is then analytic and a sample
    still costs as much as the path.

    Raises:
        ValueError: for a metric, coefficient, number of steps or of samples that is not accepted.
    """

    name: ClassVar[str] = "gits"

    metric: Metric = "dev"
    """How two steps are compared along the trajectory; the published code's default."""
    coeff: float = 1.15
    """Factor of the costs of later jumps; paper: 1.15, published code: 1.20 for latents."""
    teacher_steps: int = 60
    """Number of steps of the trajectory that nodes are chosen from; paper: 60."""
    teacher_solver: str = "ipndm:4"
    """Solver of that trajectory; paper: ipndm:4."""
    samples: int = 256
    """Number of endpoints whose trajectories are averaged, at most; paper: 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        solvers.named(self.teacher_solver)
        require_choice("metric", self.metric, Metric)
        require_least(self, samples=1)
        if not 0 < self.coeff < float("inf"):
            raise ValueError(f"coeff must be positive and finite, got {self.coeff}")
        low, high = 1 + self.analytic_first, self.teacher_steps
        if not low <= self.steps <= high:
            raise ValueError(
                f"steps must be in [{low}, {high}], up to teacher_steps, got {self.steps}"
            )

    @torch.no_grad()
    def best(self, denoiser: Denoiser, train: Endpoints, loss: Loss) -> Tensor:
        """Return the nodes of the cheapest path. Of the end points only noise and condition are
        used, since the teacher is the method's own.

        Raises:
            ValueError: if the teacher's trajectory is not finite.
        """
        data = train[: self.samples]
        tau = replace(self, steps=self.teacher_steps).base(denoiser.schedule)
        cost, ends = torch.zeros(()), []
        for part in self.batches(denoiser, data):
            run = follow(denoiser, part, tau, solvers.named(self.teacher_solver))
            cost = cost + cost_matrix(run, self.metric) * (len(part) / len(data))
            ends.append(run.end)
        path = shortest_path(
            cost, self.steps - self.analytic_first, self.coeff, first=1 + self.analytic_first
        )
        if self.analytic_first:
            path = self._with_analytic_step(path, denoiser, data, tau, torch.cat(ends))
        return tau[:, path]

    def _with_analytic_step(
        self, path: list[int], denoiser: Denoiser, data: Endpoints, tau: Tensor, ends: Tensor
    ) -> list[int]:
        """The path with the best node between its first two."""

        def miss(k: int) -> float:
            sampler = self.on(tau[:, [0, k, *path[1:]]])
            samples = [
                sampler(denoiser, part.noise, part.condition)
                for part in self.batches(denoiser, data)
            ]
            return (torch.cat(samples) - ends).flatten(1).norm(dim=1).mean().item()

        return [0, min(range(1, path[1]), key=miss), *path[1:]]


@dataclass(frozen=True)
class Run:
    """A batch of teacher trajectories on M + 1 nodes, in the variables of the drift form."""

    y: Tensor  # (M + 1, batch, dim), states
    slopes: Tensor  # (M, batch, dim), dy / dc
    clock: Tensor  # (M + 1,), float64
    end: Tensor  # (batch, *shape), x at the last node


def follow(denoiser: Denoiser, data: Endpoints, tau: Tensor, teacher: Solver) -> Run:
    """Run the teacher on ``tau`` ``(1, M + 1)`` and keep every state and slope.

    Raises:
        ValueError: if a state is not finite.
    """
    schedule, form = denoiser.schedule, drift_form(denoiser.native, denoiser.schedule)
    record = _Recorder(Discretization.plain(tau))
    end = solve(denoiser, prior(schedule, data.noise), record, teacher, data.condition)
    states = torch.stack([*record.states, end])
    at = [
        {"x": x, "schedule": schedule, "t": t}
        for x, t in zip(record.states, tau[0, :-1, None], strict=True)
    ]
    slopes = [
        convert(a, denoiser.native, form, **here)
        for a, here in zip(record.answers, at, strict=True)
    ]
    y = states / broadcast(form.scale(schedule, tau[0]), states)
    if not bool(y.isfinite().all()):
        raise ValueError("the teacher of GITS must stay finite, got states that are not")
    return Run(y.flatten(2), torch.stack(slopes).flatten(2), form.clock(schedule, tau[0]), end)


class _Recorder(PlanWrapper):
    """A plan that remembers every state and the answer there."""

    def __init__(self, inner: Discretization) -> None:
        super().__init__(inner)
        self.states: list[Tensor] = []
        self.answers: list[Tensor] = []

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        self.states.append(x)
        self.answers.append(answer)
        return super().decide(k, x, answer, features)


def cost_matrix(run: Run, metric: str) -> Tensor:
    """Return the costs of jumps from node i to node j, ``(M + 1, M + 1)`` float64; infinite unless
    j > i.
    """
    size = len(run.clock)
    cost = run.clock.new_full((size, size), torch.inf)
    chord = run.y[0], run.y[-1]
    # One row at a time: the jumps of a row take as much memory as the trajectory, those of all rows
    # M times as much.
    for i in range(size - 1):
        jumps = run.y[i] + broadcast(run.clock[i + 1 :] - run.clock[i], run.y) * run.slopes[i]
        cost[i, i + 1 :] = METRICS[metric](jumps, run.y[i + 1 :], chord).mean(1)
    return cost


Chord = tuple[Tensor, Tensor]


def l1(jumps: Tensor, states: Tensor, chord: Chord) -> Tensor:
    """Return the sum of absolute differences; all metrics map ``(nodes, batch, dim)`` to ``(nodes,
    batch)``.
    """
    return (jumps - states).abs().sum(-1)


def l2(jumps: Tensor, states: Tensor, chord: Chord) -> Tensor:
    """Return the Euclidean distance."""
    return (jumps - states).norm(dim=-1)


def deviation(jumps: Tensor, states: Tensor, chord: Chord) -> Tensor:
    """Return how much farther from the trajectory's chord the jump ends than the teacher does; may
    be negative.
    """
    return off(chord, jumps) - off(chord, states)


def off(chord: Chord, y: Tensor) -> Tensor:
    """Return the distance of ``y`` from the line through the two ends of the chord."""
    start, end = chord
    along = torch.nn.functional.normalize(start - end, dim=-1)
    offset = y - end
    return (offset - (offset * along).sum(-1, keepdim=True) * along).norm(dim=-1)


METRICS: dict[str, Callable[[Tensor, Tensor, Chord], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "dev": deviation,
}


def shortest_path(cost: Tensor, steps: int, coeff: float, first: int = 1) -> list[int]:
    """Return the nodes of the cheapest path from node 0 to the last.

    Args:
        cost: of each jump, infinite where none goes.
        steps: number of jumps.
        coeff: factor of the costs of later jumps, once more for each jump.
        first: the first jump goes no less far than this node.
    """
    last = len(cost) - 1
    cost = cost.clone()
    cost[0, 1:first] = torch.inf
    value, choices = cost[:, last], []
    for _ in range(steps - 1):
        value, choice = (cost + coeff * value).min(dim=1)
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [*path, last]
