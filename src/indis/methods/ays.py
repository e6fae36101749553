r"""AYS, "Align Your Steps" (arXiv 2404.14507): the grid with the least bound on what the steps of
an SDE solver lose.

A first-order stochastic solver acts as if the denoised sample D stayed over a step what it was at
its start. By Girsanov's theorem its samples are then away from the true ones by a KL divergence of
at most (Eq. 10, 11)

.. math:: KLUB = \sum_i \int_{t_{i-1}}^{t_i} \frac{\dot\sigma}{\sigma^3}
                 E \| D(x_t, t) - D(x_{t_i}, t_i) \|^2 dt
               = \frac12 \sum_i \int E \| D(x_t, t) - D(x_{t_i}, t_i) \|^2 \, d \, snr ,

with :math:`\sigma` the noise over the signal, snr its inverse square, and both states on one path
of the forward process. The bound is a sum over intervals, so a node can be moved knowing its two
neighbours alone, and it is minimised by trying candidates for one node after the other (Algorithm
1). As in the paper,

* it is done for 10 intervals, begun at a heuristic grid, with 11 candidates a node, then halving
  each interval twice;
* it stops early, since the bound is on paths and samples are best before it is least. The paper
  judges by image quality or by eye; here the loss to the teacher's end points picks one of the
  grids on the way;
* any other number of steps interpolates log sigma linearly over the index.

Ours is how the bound is measured. The paper draws new times and noise for each candidate; here each
sample follows one forward path over a fine grid, once, and the bounds of all pairs of nodes are
read off. A search thus costs ``samples * (fine + 1)`` evaluations, plus about 25 rounds of sampling
to see where to stop. The data are the teacher's end points. As :math:`\sigma` is relative to the
signal, the bound does not depend on how a schedule scales its states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from indis import grids
from indis.checks import require_least
from indis.denoise import Denoiser, Form, convert, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.methods.method import GridMethod
from indis.noise import NoiseSchedule, end_levels
from indis.numerics import TIME_DTYPE, broadcast, to_sample_device
from indis.plan import Churn
from indis.solvers.stepper import inflate

# Noise over signal, paper, Table 3.
TABLES = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
OPTIMISE = "optimise"


@dataclass(frozen=True)
class AYS(GridMethod):
    """``table`` names a published schedule, or "optimise" searches one for any denoiser, beginning
    at ``grid``.

    The paper begins at EDM's grid for models of continuous time and at a uniform one for discrete
    time.

    Raises:
        ValueError: for an unknown table or a number that is not accepted.
    """

    name: ClassVar[str] = "ays"

    table: str = OPTIMISE
    """optimise, or a published table: sd15, sdxl or svd."""
    intervals: int = 10
    """Number of steps of the first grid that is optimised (paper, sec. 3.3)."""
    halvings: int = 2
    """How often its intervals are halved and optimised again (paper, sec. 3.3)."""
    candidates: int = 11
    """Number of times tried for a node: itself, and as many to either side (paper, app. B.1)."""
    samples: int = 256
    """Number of endpoints that the bound is measured on (paper: 8192, with one time each)."""
    fine: int = 240
    """Number of intervals of the grid on which the bound is measured. Ours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table not in (OPTIMISE, *TABLES):
            raise ValueError(
                f"table must be {OPTIMISE} or one of {', '.join(TABLES)}, got {self.table!r}"
            )
        require_least(self, intervals=2, halvings=0, candidates=3, samples=1)
        if self.candidates % 2 == 0:
            raise ValueError(
                "candidates must be odd, as many to the left of a node as to its right, "
                f"got {self.candidates}"
            )
        require_least(self, fine=self.intervals * 2**self.halvings)

    def best(self, denoiser: Denoiser, train: Endpoints, loss: Loss) -> Tensor:
        """Return the table's grid or the one that the search finds.

        Raises:
            ValueError: if the table was made for another schedule, or the bound is not finite.
        """
        if self.table != OPTIMISE:
            return published(self.table, denoiser.schedule, self.steps)
        return self._optimised(denoiser, train[: self.samples], loss)

    @torch.no_grad()
    def _optimised(self, denoiser: Denoiser, data: Endpoints, loss: Loss) -> Tensor:
        require_noise(denoiser.schedule)
        fine = grids.log_snr(denoiser.schedule, self.fine)
        cost = self._bounds(denoiser, data, fine).tolist()
        paths = sweeps(
            cost, self._first(denoiser.schedule), self.candidates // 2, gap=2**self.halvings
        )
        levels = (
            denoiser.schedule.log_snr(fine[0, halved(cost, path, self.halvings)]) for path in paths
        )
        candidates = (interpolated(denoiser.schedule, level, self.steps) for level in levels)
        return min(candidates, key=lambda tau: self._loss(denoiser, data, tau, loss))

    def _first(self, schedule: NoiseSchedule) -> list[int]:
        """Where on the fine grid the search begins: near the heuristic grid, with room for
        halvings.
        """
        level = schedule.log_snr(grids.named(self.grid)(schedule, self.intervals)[0])
        path = ((level - level[0]) / (level[-1] - level[0]) * self.fine).round().long().tolist()
        gap = 2**self.halvings
        for i in range(1, self.intervals):
            path[i] = max(path[i], path[i - 1] + gap)
        for i in range(self.intervals - 1, 0, -1):
            path[i] = min(path[i], path[i + 1] - gap)
        return path

    def _bounds(self, denoiser: Denoiser, data: Endpoints, fine: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.recipe.seed)
        total = torch.zeros(())
        for part in self.batches(denoiser, data):
            for path in denoised(denoiser, part, fine[0], generator).double().unbind(1):
                total = total + torch.cdist(path, path).square()
        return interval_bounds(total.cpu() / len(data), denoiser.schedule.log_snr(fine[0]))

    def _loss(self, denoiser: Denoiser, data: Endpoints, tau: Tensor, loss: Loss) -> float:
        sampler, decode = self.on(tau), denoiser.decode
        parts, loss = self.batches(denoiser, data), to_device_of(loss, denoiser)
        values = [
            loss(decode(sampler(denoiser, p.noise, p.condition)), decode(p.target)) for p in parts
        ]
        return torch.cat(values).mean().item()


def require_noise(schedule: NoiseSchedule) -> None:
    """Pass if the signal-to-noise ratio is finite.

    Raises:
        ValueError: if sigma(t_min) is 0.
    """
    if not end_levels(schedule)[1] > 0:
        raise ValueError(
            f"AYS needs a schedule with sigma(t_min) > 0, got none at t_min = {schedule.t_min:g}"
        )


def forward_path(
    schedule: NoiseSchedule, data: Tensor, tau: Tensor, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield states ``(batch, *shape)`` of one forward process at the nodes ``tau`` ``(nodes,)``,
    the last and cleanest first.

    Its noise is drawn on the CPU, so it is the same on every device.
    """
    noise = torch.randn(data.shape, generator=generator, dtype=data.dtype).to(data.device)
    t = tau[-1:]
    x = broadcast(schedule.alpha(t), data) * data + broadcast(schedule.sigma(t), data) * noise
    yield x
    for s in reversed(tau[:-1].split(1)):
        noise = torch.randn(data.shape, generator=generator, dtype=data.dtype).to(data.device)
        x, t = inflate(x, t, Churn(s, noise), schedule), s
        yield x


def denoised(
    denoiser: Denoiser, data: Endpoints, tau: Tensor, generator: torch.Generator
) -> Tensor:
    """Return D at the nodes ``tau`` ``(nodes,)`` of a forward path from each target, ``(nodes,
    batch, dim)``.

    Raises:
        ValueError: if it is not finite.
    """
    states = forward_path(denoiser.schedule, data.target, tau, generator)
    answers = []
    for x, t in zip(states, reversed(tau.split(1)), strict=True):
        native = denoiser(x, to_sample_device(t, x).expand(len(x)), data.condition)
        answer = convert(native, denoiser.native, Form.DATA, x=x, schedule=denoiser.schedule, t=t)
        if not bool(answer.isfinite().all()):
            raise ValueError(
                f"AYS needs a finite denoised sample at all times, got none at t = {float(t):g}"
            )
        answers.append(answer.flatten(1))
    return torch.stack(answers[::-1])


def interval_bounds(change: Tensor, log_snr: Tensor) -> Tensor:
    """Return the KLUB of the interval from node i to node j > i, ``(nodes, nodes)``.

    ``change`` is E |D_i - D_j|^2. The integral over snr is that of the trapezoid rule.
    """
    pieces = (change[:, 1:] + change[:, :-1]) / 2 * (2 * log_snr).exp().diff() / 2
    return F.pad(pieces.triu().cumsum(1), (1, 0))


Costs = list[list[float]]


def sweeps(cost: Costs, path: list[int], reach: int, gap: int) -> Iterator[list[int]]:
    """Yield the path, then what it becomes each time all its inner nodes have moved in turn, until
    none does any more.

    A node goes to the best place up to ``reach`` from where it is and at least ``gap`` from its
    neighbours.
    """
    moved = True
    while moved:
        yield list(path)
        before = list(path)
        for i in range(1, len(path) - 1):
            low, high = (
                max(path[i] - reach, path[i - 1] + gap),
                min(path[i] + reach, path[i + 1] - gap),
            )
            path[i] = between(cost, path[i - 1], path[i + 1], range(low, high + 1))
        moved = path != before


def halved(cost: Costs, path: list[int], times: int) -> list[int]:
    """Return the path with a best node put into each interval, ``times`` times over."""
    for gap in (2**k for k in reversed(range(times))):
        inner = [(a, between(cost, a, b, range(a + gap, b - gap + 1))) for a, b in pairwise(path)]
        path = [*(node for pair in inner for node in pair), path[-1]]
    return path


def between(cost: Costs, left: int, right: int, places: range) -> int:
    """Return the place that makes the two intervals around it cheapest."""
    return min(places, key=lambda place: cost[left][place] + cost[place][right])


def interpolated(schedule: NoiseSchedule, log_snr: Tensor, steps: int) -> Tensor:
    """Return a grid of ``steps`` intervals from ``log_snr`` ``(nodes,)``, linear over the index;
    the ends are the schedule's own.
    """
    place = torch.linspace(0, len(log_snr) - 1, steps + 1, dtype=TIME_DTYPE)[1:-1]
    cell = place.long().clamp(max=len(log_snr) - 2)
    inner = torch.lerp(log_snr[cell], log_snr[cell + 1], place - cell)
    ends = schedule.t_max, schedule.t_min
    first, last = (torch.tensor([t], dtype=TIME_DTYPE) for t in ends)
    return torch.cat([first, schedule.time(inner), last])[None]


def published(table: str, schedule: NoiseSchedule, steps: int) -> Tensor:
    """Return a table's grid of ``steps`` intervals, at the times that have its noise levels.

    Raises:
        ValueError: if the schedule does not span the table's noise levels.
    """
    level = -torch.tensor(TABLES[table], dtype=TIME_DTYPE).log()
    ends = schedule.log_snr(torch.tensor([schedule.t_max, schedule.t_min], dtype=TIME_DTYPE))
    if not torch.allclose(ends, level[[0, -1]], rtol=0, atol=0.05):
        high, low = (-ends).exp().tolist()
        raise ValueError(
            f"table {table!r} is made for noise levels from {TABLES[table][0]:g} to "
            f"{TABLES[table][-1]:g}, got a model with {high:g} to {low:g}; tables are "
            f"{', '.join(TABLES)}, and {OPTIMISE!r} works for any model"
        )
    return interpolated(schedule, level, steps)
