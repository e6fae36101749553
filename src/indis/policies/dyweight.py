r"""DyWeight's plan (arXiv 2603.11607): free multistep weights, time scales, and a clock that
follows the weights' sum.

The published rule, for the EDM time that is its own clock :math:`c = t` (slope :math:`d` of the
ODE, base grid
:math:`t_k`):

.. math::
    d_k &= (x_k - D(x_k, |s_k c_k|)) / c_k \\
    x_{k+1} &= x_k + (t_{k+1} - c_k) \sum_j W_{kj} d_{k-j} \\
    c_{k+1} &= c_k + (t_{k+1} - c_k) \sum_j W_{kj}, \qquad c_0 = t_0

W is unconstrained, so a step may go further than the grid says; :math:`c` is how far it really
went.

On the loop of :mod:`indis.solvers.loop`, :math:`c` are the nodes. A step's unit is then
:math:`c_{k+1} - c_k`, and the rule's step is the unit times :math:`W_{kj} (t_{k+1} - c_k) /
(c_{k+1} - c_k)`, which is W over its row sum; the plan's corrections are the differences from
iPNDM's rows. In other forms the form's clock takes the place of t.

The network is told :math:`|s_k|` times the noise level (noise over signal; a flow's own time in
velocity form), the state x / alpha staying as it is, and a slope from a *noise* prediction divides
by :math:`c_k`, not by what the network was told: the data prediction is kept. A predicted velocity
is used as it is. The published 1e-8 beside :math:`c_k` is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indis.denoise import Form
from indis.noise import NoiseSchedule, limit_shift
from indis.plan import Discretization, Keep
from indis.policies.base import Fixed, Policy, shared_grid
from indis.policies.tracking import effective, stride

_TINY = 1e-12


class DyWeightPolicy(Policy):
    """Learned ``weights`` ``(steps, history)``, newest answer first, and ``scales``, one an
    evaluation.

    ``rows`` ``(steps, history)`` are the weights of the solver that the plan corrects, zero where
    there is no answer yet; learning starts there. ``form`` is the solver's, ``native`` the
    denoiser's. Without ``tracking`` the nodes stay on the base grid, whatever the weights sum to.
    With ``analytic_first`` the first scale has nothing to act on and is left out, as published.
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
        self.steps, self.schedule, self.form, self.native, self.tracking = (
            len(rows),
            schedule,
            form,
            native,
            tracking,
        )
        self.register_buffer("base", shared_grid(base))
        self.register_buffer("rows", rows.detach().clone())
        self.weights = nn.Parameter(rows.detach().clone())
        self.scales = nn.Parameter(rows.new_ones(self.steps - analytic_first))

    @property
    def plan(self) -> Discretization:
        """The plan, whatever the sample. Its last node is how far the rule went, which need not be
        t_min.
        """
        weights = self.weights.tril()  # step k has k + 1 answers
        tau = self.base
        if self.tracking:
            tau = effective(self.base, weights.sum(1)[None], self.schedule, self.form)
        units = stride(self.base, tau, self.schedule, self.form)
        dtau = self._dtau(tau[:, :-1])
        keep: Keep = "answer" if self.native is Form.VELOCITY else "data"
        corrections = units[..., None] * weights - self.rows
        return Discretization(tau, dtau, torch.ones_like(dtau), corrections, keep=keep)

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Discretization:
        """The plan, whatever the sample."""
        return self.plan

    def frozen(self) -> Fixed:
        """Everybody's plan."""
        return Fixed(self.plan.detach())

    def _dtau(self, tau: Tensor) -> Tensor:
        unscaled = self.scales.new_ones(self.steps - len(self.scales))
        scale = torch.cat([unscaled, self.scales]).abs()
        if self.form is Form.NOISE:
            level = self.schedule.log_snr(tau)
            shift = self.schedule.time(level - scale.clamp_min(_TINY).log()) - self.schedule.time(
                level
            )
        else:
            shift = (scale - 1) * tau
        return limit_shift(self.schedule, tau, shift)
