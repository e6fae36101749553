r"""DPM-Solver++ multistep (Lu et al., 2022b): exponential integration of the data prediction.

With :math:`h = \lambda_{k+1} - \lambda_k`, :math:`r_i` the earlier steps over h, and
:math:`\phi_n` of :func:`indis.numerics.phi` at -h, the published coefficients are
:math:`h \phi_1` for the newest prediction, :math:`h \phi_1 / 2` (2M) or :math:`h \phi_2` (3M) for
its first difference and :math:`h \phi_3` for its second.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule
from indis.numerics import phi
from indis.solvers.base import Coefficients, Nodes, step_order


@dataclass(frozen=True)
class DPMSolverPP:
    """Orders 1 to 3. ``lower_order_final`` ends with orders ..., 2, 1 as published for few steps.

    Where log-SNR is infinite at the end of the last step, that step is of first order whatever the
    flag says.
    """

    name = "dpmpp"

    order: int = 2
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")

    @property
    def memory(self) -> int:
        """As many answers as the order."""
        return self.order

    def form(self, native: Form, schedule: NoiseSchedule) -> Form:
        """Data."""
        return Form.DATA

    def kind(self, k: int, steps: int, *, singular_end: bool) -> Hashable:
        """The order of the step."""
        lower = self.lower_order_final
        return step_order(self.order, k, steps, lower_final=lower, singular_end=singular_end)

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Write the differences of the last predictions as weights of the predictions."""
        level, alpha, sigma = nodes.log_snr, nodes.alpha[..., -1], nodes.sigma
        h = level[..., -1] - level[..., -2]
        unit = alpha * -torch.expm1(-h)  # alpha h phi_1(-h)
        weights = torch.stack(_weights(kind, level, h, alpha, unit), dim=-1)
        return Coefficients(sigma[..., -1] / sigma[..., -2], weights, unit)

    def nfe(self, steps: int) -> int:
        """One evaluation a step."""
        return steps


def _weights(
    order: Hashable, level: Tensor, h: Tensor, alpha: Tensor, unit: Tensor
) -> list[Tensor]:
    if order == 1:
        return [unit]
    r0 = (level[..., -2] - level[..., -3]) / h
    if order == 2:
        second = unit / (2 * r0)
        return [unit + second, -second]
    r1 = (level[..., -3] - level[..., -4]) / h
    first, curved = alpha * h * phi(2, -h), alpha * h * phi(3, -h)
    # D10 = (m0 - m1) / r0, D11 = (m1 - m2) / r1, D1 = D10 + r0 / (r0 + r1) (D10 - D11),
    # D2 = (D10 - D11) / (r0 + r1)
    bend = (first * r0 + curved) / (r0 + r1)
    new, old = (first + bend) / r0, -bend / r1
    return [unit + new, old - new, -old]
