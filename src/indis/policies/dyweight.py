r"""DyWeight's plan (arXiv 2603.11607): free multistep weights, time scales, and a clock that follows the weights' sum.

The published rule, for the EDM time that is its own clock :math:`c = t` (slope :math:`d` of the ODE, base grid
:math:`t_k`):

.. math::
    d_k &= (x_k - D(x_k, |s_k c_k|)) / c_k \\
    x_{k+1} &= x_k + (t_{k+1} - c_k) \sum_j W_{kj} d_{k-j} \\
    c_{k+1} &= c_k + (t_{k+1} - c_k) \sum_j W_{kj}, \qquad c_0 = t_0

W is unconstrained, so a step may go further than the grid says; :math:`c` is how far it really went.

On the loop of :mod:`indis.solvers.loop`, :math:`c` are the nodes. A step's unit is then :math:`c_{k+1} - c_k`, and the
rule's step is the unit times :math:`W_{kj} (t_{k+1} - c_k) / (c_{k+1} - c_k)`, which is W over its row sum; the plan's
corrections are the differences from iPNDM's rows. In other forms the form's clock takes the place of t.

The network is told :math:`|s_k|` times the noise level (noise over signal; a flow's own time in velocity form), the
state staying as it is, and a slope from a *noise* prediction divides by :math:`c_k`, not by what the network was told:
an output scale gamma. A predicted velocity is used as it is. The published 1e-8 beside :math:`c_k` is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indis.denoise import Form
from indis.discretization import Discretization
from indis.noise import NoiseSchedule
from indis.policies.policy import Fixed, Policy

# Least step of the effective clock, as a part of its range. Unlike the published code, the clock never runs backwards
# or below the schedule; the state still moves by the rule, whatever the clock says.
LEAST = 1e-6
_TINY = 1e-12


class DyWeightPolicy(Policy):
    """Learned ``weights`` ``(steps, history)``, newest answer first, and ``scales``, one an evaluation.

    ``rows`` ``(steps, history)`` are the weights of the solver that the plan corrects, zero where there is no answer
    yet; learning starts there. ``form`` is the solver's, ``native`` the denoiser's. Without ``tracking`` the nodes stay
    on the base grid, whatever the weights sum to. With ``analytic_first`` the first scale has nothing to act on and is
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
        self.steps, self.schedule, self.form, self.native, self.tracking = len(rows), schedule, form, native, tracking
        self.register_buffer("base", base.detach().clone())
        self.register_buffer("rows", rows.detach().clone())
        self.weights = nn.Parameter(rows.detach().clone())
        self.scales = nn.Parameter(rows.new_ones(self.steps - analytic_first))

    @property
    def plan(self) -> Discretization:
        """The plan, whatever the sample. Its last node is how far the rule went, which need not be t_min."""
        weights = self.weights.tril()  # step k has k + 1 answers
        goal = self.form.clock(self.schedule, self.base)[:, 1:]
        tau = self._effective(weights.sum(1), goal) if self.tracking else self.base
        clock = self.form.clock(self.schedule, tau)
        # The rule's step over the clock's own: one over the row sum, unless the clock was held.
        stride = (goal - clock[:, :-1]) / clock.diff(dim=1)
        dtau = self._dtau(tau[:, :-1])
        return Discretization(tau, dtau, self._gamma(tau[:, :-1], dtau), stride[..., None] * weights - self.rows)

    def forward(self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None) -> Discretization:
        """The plan, whatever the sample."""
        return self.plan

    def frozen(self) -> Fixed:
        """Everybody's plan."""
        return Fixed(self.plan.detach())

    def _effective(self, sums: Tensor, goal: Tensor) -> Tensor:
        """Nodes ``(1, steps + 1)`` of the clock that the row sums drive towards the base grid's ``goal``."""
        start = self.form.clock(self.schedule, self.base[:, 0])
        least = LEAST * (start - goal[:, -1])
        reached = [start]
        for k, total in enumerate(sums):
            # Written so that a sum of one gives the goal itself.
            free = goal[:, k] + (1 - total) * (reached[-1] - goal[:, k])
            floor = goal[:, -1] + least * (self.steps - 1 - k)  # leaves room for the steps that follow
            reached.append(free.clamp(floor, reached[-1] - least))
        return torch.cat([self.base[:, :1], self._time(torch.stack(reached[1:], dim=1))], dim=1)

    def _time(self, clock: Tensor) -> Tensor:
        """The inverse of the form's clock."""
        if self.form is Form.NOISE:
            ratio = clock
        else:
            inside = clock.clamp(_TINY, 1 - _TINY)
            ratio = inside / (1 - inside)
        return self.schedule.time(-ratio.log()).clamp_min(self.schedule.t_min)

    def _dtau(self, tau: Tensor) -> Tensor:
        unscaled = self.scales.new_ones(self.steps - len(self.scales))
        scale = torch.cat([unscaled, self.scales]).abs()
        if self.form is Form.NOISE:
            level = self.schedule.log_snr(tau)
            shift = self.schedule.time(level - scale.clamp_min(_TINY).log()) - self.schedule.time(level)
        else:
            shift = (scale - 1) * tau
        # No network is defined at t <= 0; half of t_min is as far below the range as it may be asked.
        return torch.maximum(shift, self.schedule.t_min / 2 - tau)

    def _gamma(self, tau: Tensor, dtau: Tensor) -> Tensor:
        if self.native is not Form.NOISE:
            return torch.ones_like(tau)
        return self.form.clock(self.schedule, tau + dtau) / self.form.clock(self.schedule, tau)
