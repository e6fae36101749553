r"""DyWeight (arXiv 2603.11607): multistep weights and time scales that all samples share, and a
clock that follows the weights' sum.

The published rule, for the EDM time that is its own clock :math:`c = t` (slope :math:`d` of the
ODE, base grid :math:`t_k`):

.. math::
    d_k &= (x_k - D(x_k, |s_k c_k|)) / c_k \\
    x_{k+1} &= x_k + (t_{k+1} - c_k) \sum_j W_{kj} d_{k-j} \\
    c_{k+1} &= c_k + (t_{k+1} - c_k) \sum_j W_{kj}, \qquad c_0 = t_0

W is unconstrained, so a step may go further than the grid says; :math:`c` is how far it really
went.

On the sampling loop :math:`c` are the nodes. A step's unit is then :math:`c_{k+1} - c_k`, and the
rule's step is the unit times :math:`W_{kj} (t_{k+1} - c_k) / (c_{k+1} - c_k)`, which is W over its
row sum; the plan's corrections are the differences from iPNDM's rows. In other forms the form's
clock takes the place of t.

The network is asked at :math:`|s_k|` times the noise level (noise over signal; a flow's own time in
velocity form), the state x / alpha staying as it is, and a slope from a *noise* prediction divides
by :math:`c_k`: the data prediction is kept. A predicted velocity is used as it is. The published
1e-8 beside :math:`c_k` is left out.

Where this departs from the released code: end points come from a stored set, not from a teacher run
in each update; the rate follows the shared warm-up and cosine to zero (there to 1 %); the clock is
kept inside its interval, so that it never runs backwards or below the schedule, while the state
still moves by the rule; and the loss is a field (published: squared distance of Inception
features).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from indis import solvers
from indis.denoise import Denoiser, Form
from indis.methods.method import Method
from indis.noise import NoiseSchedule, limit_shift, shifted
from indis.numerics import TIME_DTYPE
from indis.plan import Discretization, Keep
from indis.policies import SharedPolicy, shared_grid
from indis.recipe import Recipe
from indis.sampler import Sampler
from indis.solvers.adams import EVEN_WEIGHTS

LEAST = 1e-6  # least step of the clock, as a part of its range; ours
_TINY = 1e-12


def effective(goals: Tensor, sums: Tensor, schedule: NoiseSchedule, form: Form) -> Tensor:
    """Return the nodes that weights lead to: c_k of the rule.

    Args:
        goals: base grid ``(grid, steps + 1)``, t_k of the rule.
        sums: row sums of the weights ``(grid, steps)``.
        schedule: noise schedule of the denoiser.
        form: in which the solver keeps slopes, on whose clock times are compared.

    Returns:
        ``(grid, steps + 1)``; the last one need not be the schedule's end.
    """
    goal = form.clock(schedule, goals)
    least = LEAST * (goal[:, 0] - goal[:, -1])
    steps = sums.shape[1]
    reached = [goal[:, 0].expand(len(sums))]
    for k, total in enumerate(sums.unbind(1)):
        # Written so that a sum of one gives the goal itself.
        free = goal[:, k + 1] + (1 - total) * (reached[-1] - goal[:, k + 1])
        floor = goal[:, -1] + least * (steps - 1 - k)  # leaves room for the steps that follow
        reached.append(free.clamp(floor, reached[-1] - least))
    clock = torch.stack(reached[1:], dim=1)
    if form is Form.NOISE:
        ratio = clock
    else:
        inside = clock.clamp(_TINY, 1 - _TINY)
        ratio = inside / (1 - inside)
    times = schedule.time(-ratio.log()).clamp_min(schedule.t_min)
    return torch.cat([goals[:, :1].expand(len(sums), 1), times], dim=1)


def stride(goals: Tensor, nodes: Tensor, schedule: NoiseSchedule, form: Form) -> Tensor:
    """Return the rule's unit over the nodes' own, ``(grid, steps)``: one over the row sum, unless
    the clock was held.
    """
    goal, clock = form.clock(schedule, goals), form.clock(schedule, nodes)
    return (goal[:, 1:] - clock[:, :-1]) / clock.diff(dim=1)


class DyWeightPolicy(SharedPolicy):
    """Learned ``weights`` ``(steps, history)``, newest answer first, and ``scales``, one an
    evaluation.

    Args:
        base: grid ``(1, steps + 1)``.
        rows: weights ``(steps, history)`` of the solver that the plan corrects, where learning
            starts; zero where there is no answer yet.
        schedule: noise schedule of the denoiser.
        form: in which the solver keeps slopes.
        native: form of the denoiser's answers.
        tracking: whether nodes follow the weights; else they stay on the base grid.
        analytic_first: whether the first answer is analytic: its scale has nothing to act on and is
            left out, as published.
    """

    base: Tensor
    rows: Tensor

    def __init__(
        self,
        base: Tensor,
        rows: Tensor,
        schedule: NoiseSchedule,
        *,
        form: Form,
        native: Form,
        tracking: bool = True,
        analytic_first: bool = False,
    ) -> None:
        super().__init__()
        self.steps, self.order = rows.shape
        self.schedule, self.form, self.native, self.tracking = schedule, form, native, tracking
        self.register_buffer("base", shared_grid(base))
        self.register_buffer("rows", rows.detach().clone())
        self.weights = nn.Parameter(rows.detach().clone())
        self.scales = nn.Parameter(rows.new_ones(self.steps - analytic_first))

    def shared_plan(self) -> Discretization:
        """Return the plan. Its last node is how far the rule went, which need not be t_min."""
        weights = self.weights.tril()  # step k has k + 1 answers
        tau = self.base
        if self.tracking:
            tau = effective(self.base, weights.sum(1)[None], self.schedule, self.form)
        units = stride(self.base, tau, self.schedule, self.form)
        dtau = self._dtau(tau[:, :-1])
        keep: Keep = "answer" if self.native is Form.VELOCITY else "data"
        corrections = units[..., None] * weights - self.rows
        return Discretization(tau, dtau, torch.ones_like(dtau), corrections, keep=keep)

    def _dtau(self, tau: Tensor) -> Tensor:
        unscaled = self.scales.new_ones(self.steps - len(self.scales))
        scale = torch.cat([unscaled, self.scales]).abs()
        if self.form is Form.NOISE:
            shift = shifted(self.schedule, tau, scale.clamp_min(_TINY).log()) - tau
        else:
            shift = (scale - 1) * tau
        return limit_shift(self.schedule, tau, shift)


@dataclass(frozen=True)
class DyWeight(Method):
    """One fit; numbers are the released code's for CIFAR-10 (smaller rates for the rest, 5e-4 for
    Stable Diffusion).

    The solver's order is the width of the causal band (2 for Stable Diffusion and Flux).
    ``analytic_first`` is on as published (off for Stable Diffusion).

    Raises:
        ValueError: for a solver that is not iPNDM.
    """

    name: ClassVar[str] = "dyweight"

    analytic_first: bool = True
    """Replace the first evaluation by its closed form (AFS), which saves one. As published."""
    tracking: bool = True
    """Nodes follow the sum of the weights. Without it a sum only scales the step."""
    recipe: Recipe = field(default_factory=lambda: Recipe(iterations=625, batch=16, lr=3e-2))
    """How it is tuned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(solvers.named(self.solver), solvers.IPNDM):
            raise ValueError(
                f"solver must be ipndm:1 ... ipndm:4 for DyWeight, got {self.solver!r}"
            )

    @property
    def freedoms(self) -> str:
        """Weights, which move the nodes too if they are tracked, and scales of the times that are
        asked about.
        """
        return "weights+time scales"

    def untrained(self, denoiser: Denoiser) -> Sampler:
        """Return iPNDM, to rounding."""
        solver, schedule = solvers.named(self.solver), denoiser.schedule
        policy = DyWeightPolicy(
            self.base(schedule),
            ipndm_rows(self.steps, solver.memory),
            schedule,
            form=solver.form(denoiser.native, schedule),
            native=denoiser.native,
            tracking=self.tracking,
            analytic_first=self.analytic_first,
        )
        return Sampler(policy, solver, self.analytic_first)


def ipndm_rows(steps: int, order: int) -> Tensor:
    """Return the weights of iPNDM's steps, ``(steps, order)``, newest answer first; zero where
    there is no answer yet.
    """
    rows = [EVEN_WEIGHTS[min(order, k + 1)] for k in range(steps)]
    return torch.tensor([[*row, *[0.0] * (order - len(row))] for row in rows], dtype=TIME_DTYPE)
