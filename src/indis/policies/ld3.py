r"""LD3's plan (Tong et al., ICLR 2025, arXiv 2405.15506): shared stamps, and shared shifts of what
the network is told.

In a coordinate :math:`u` (time, or log-SNR) that runs from :math:`u_0` to :math:`u_N`,

.. math:: u_k = u_0 + (u_N - u_0) \sum_{j<k} softmax(a)_j, \qquad
          u'_k = u_k + clamp(b_k, -m, m), \qquad m = r \min_k |u_{k+1} - u_k|

with the win rate r. Steps go from :math:`u_k` to :math:`u_{k+1}`; the network is told :math:`u'_k`.
The first node is not shifted and the last is never asked about. What a solver keeps is made of the
answer *at the told time*: noise or velocity as it is, but data predictions as the network meant
them at :math:`u'_k` (``keep``).

The released code has N + 1 logits, but the one at the boundary cancels in its normalisation, so
there are N here; and N + 1 shifts, of which the masks at both ends leave N - 1. It also takes the
smallest gap m from the *logits* in the log-SNR mode, so that equal logits forbid every shift. That
is a slip and is not imitated: m is the gap of the stamps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.noise import Domain, NoiseSchedule
from indis.numerics import TIME_DTYPE
from indis.plan import LOGIT_ROWS, Bounds, Discretization, Keep, coordinate, from_logits
from indis.policies.base import Fixed, Policy, shared_grid

# Not published: no interval falls below this share of what it had at first, whatever the logits.
FLOOR = 1e-6


class LD3Policy(Policy):
    """Learned ``stamps`` ``(1, steps)`` and ``shifts`` ``(1, steps - 1)`` around ``base`` ``(1,
    steps + 1)``.

    Zero stamps and shifts are the base grid bit for bit; a base that is even in the domain is LD3's
    own start. ``keep`` is what a shift leaves as it is: "data" for a solver whose history holds
    data predictions.

    Raises:
        ValueError: if ``win_rate`` is not in [0, 1), or the domain or ``keep`` is unknown.
    """

    base: Tensor

    def __init__(
        self,
        base: Tensor,
        schedule: NoiseSchedule,
        domain: Domain,
        win_rate: float = 0.5,
        keep: Keep = "answer",
    ) -> None:
        super().__init__()
        if not 0 <= win_rate < 1:
            raise ValueError(f"win_rate must be in [0, 1), got {win_rate}")
        self.register_buffer("base", shared_grid(base))
        self.schedule, self.win_rate, self.steps = schedule, win_rate, base.shape[1] - 1
        self.bounds = Bounds(dtau=0, gamma=0, domain=domain, keep=keep, floor=FLOOR / self.steps)
        self.stamps = nn.Parameter(torch.zeros(1, self.steps, dtype=TIME_DTYPE))
        self.shifts = nn.Parameter(torch.zeros(1, self.steps - 1, dtype=TIME_DTYPE))

    @property
    def plan(self) -> Discretization:
        """The plan, whatever the sample."""
        logits = F.pad(self.stamps[:, None], (0, 0, 0, LOGIT_ROWS - 1))
        stamps = from_logits(logits, self.base, self.schedule, self.bounds)
        return replace(stamps, dtau=self._dtau(stamps.tau))

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Discretization:
        """The plan, whatever the sample."""
        return self.plan

    def frozen(self) -> Fixed:
        """Everybody's plan."""
        return Fixed(self.plan.detach())

    def _dtau(self, tau: Tensor) -> Tensor:
        """The clamped shifts in units of time, ``(1, steps)``."""
        to, back = coordinate(self.schedule, self.bounds.domain)
        level = to(tau)
        most = self.win_rate * level.detach().diff(dim=1).abs().amin(1, keepdim=True)
        inside = level[:, 1:-1]
        moved = back(inside + self.shifts.clamp(-most, most)) - back(inside)
        return F.pad(moved, (1, 0))
