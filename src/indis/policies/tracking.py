r"""Time tracking: when a step's multistep weights do not sum to one, nodes lie where the sample
really went.

In units of the step towards the goal :math:`t_{k+1}` from the effective time :math:`c_k`, weights
that sum to
:math:`R_k` move an ODE of constant slope by :math:`R_k` of the way (DyWeight, arXiv 2603.11607):

.. math:: c_{k+1} = c_k + (t_{k+1} - c_k) R_k, \qquad c_0 = t_0

On the loop of :mod:`indis.solvers.loop` the :math:`c_k` are the nodes, so a step's unit is
:math:`c_{k+1} - c_k`; the rule's own unit :math:`t_{k+1} - c_k` is :func:`stride` times that. Times
are compared on the clock of the form in which the solver keeps slopes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule

# Least step of the effective clock, as a part of its range. Unlike DyWeight's published code, the
# clock never runs backwards or below the schedule; the state still moves by the rule, whatever the
# clock says.
LEAST = 1e-6
_TINY = 1e-12


def effective(goals: Tensor, sums: Tensor, schedule: NoiseSchedule, form: Form) -> Tensor:
    """Nodes ``(grid, steps + 1)`` that row sums ``(grid, steps)`` lead to, on the way to the nodes
    ``goals``.

    The last one need not be the schedule's end: it is how far the weights go.
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
    return torch.cat(
        [goals[:, :1].expand(len(sums), 1), _time(torch.stack(reached[1:], dim=1), schedule, form)],
        dim=1,
    )


def stride(goals: Tensor, nodes: Tensor, schedule: NoiseSchedule, form: Form) -> Tensor:
    """The rule's unit over the nodes' own, ``(grid, steps)``: one over the row sum, unless the
    clock was held.
    """
    goal, clock = form.clock(schedule, goals), form.clock(schedule, nodes)
    return (goal[:, 1:] - clock[:, :-1]) / clock.diff(dim=1)


def _time(clock: Tensor, schedule: NoiseSchedule, form: Form) -> Tensor:
    """The inverse of the form's clock."""
    if form is Form.NOISE:
        ratio = clock
    else:
        inside = clock.clamp(_TINY, 1 - _TINY)
        ratio = inside / (1 - inside)
    return schedule.time(-ratio.log()).clamp_min(schedule.t_min)
