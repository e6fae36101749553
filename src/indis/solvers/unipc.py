r"""UniPC (Zhao et al., 2023): a predictor-corrector that reuses the next evaluation, in data
prediction.

With z = -h the published system is :math:`R \rho = b`, :math:`R_{ij} = r_j^{i-1}`,
:math:`b_i = i!\, z \phi_{i+1}(z) / B`, where r are the earlier nodes relative to the step (the new node is r = 1) and
B(h) is z ("bh1") or :math:`e^z - 1` ("bh2"). Order 2's predictor and order 1's corrector use the published 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule
from indis.numerics import phi
from indis.solvers.solver import Coefficients, step_order


@dataclass(frozen=True)
class UniPC:
    """Orders 1-3 with the corrector on all steps but the last."""

    order: int = 3
    variant: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"variant must be bh1 or bh2, got {self.variant!r}")

    @property
    def memory(self) -> int:
        """As many answers as the order."""
        return self.order

    def form(self, native: Form) -> Form:
        """Data."""
        return Form.DATA

    def coefficients(
        self, schedule: NoiseSchedule, form: Form, tau: Tensor, steps: int
    ) -> Coefficients:
        """Predictor weights and, before the last step, corrector weights."""
        k = tau.shape[1] - 2
        order = step_order(self.order, k, steps, final=self.lower_order_final)
        level = schedule.log_snr(tau)
        z = level[:, -2] - level[:, -1]
        ratios = [(level[:, -2 - j] - level[:, -2]) / -z for j in range(1, order)]
        alpha, sigma = schedule.alpha(tau[:, -1]), schedule.sigma(tau[:, -2:])
        unit = -alpha * z * phi(1, z)
        bend = -alpha * (z if self.variant == "bh1" else torch.expm1(z))
        predict = self._predict(ratios, z, alpha, unit, bend)
        correct = self._correct(ratios, z, alpha, unit, bend) if k + 1 < steps else None
        return Coefficients(sigma[:, 1] / sigma[:, 0], predict, unit, correct)

    def nfe(self, steps: int) -> int:
        """One a step: the corrector is free."""
        return steps

    def _predict(
        self, ratios: list[Tensor], z: Tensor, alpha: Tensor, unit: Tensor, bend: Tensor
    ) -> Tensor:
        if len(ratios) == 1:
            rho = torch.full_like(z, 0.5)[:, None]
        else:
            rho = self._solve(ratios, z, alpha, bend) if ratios else z.new_empty(len(z), 0)
        older = [bend * rho[:, j] / r for j, r in enumerate(ratios)]
        return torch.stack([unit - sum(older), *older], dim=1)

    def _correct(
        self, ratios: list[Tensor], z: Tensor, alpha: Tensor, unit: Tensor, bend: Tensor
    ) -> Tensor:
        nodes = [*ratios, torch.ones_like(z)]
        rho = self._solve(nodes, z, alpha, bend) if ratios else torch.full_like(z, 0.5)[:, None]
        older = [bend * rho[:, j] / r for j, r in enumerate(ratios)]
        new = bend * rho[:, -1]
        return torch.stack([new, unit - new - sum(older), *older], dim=1)

    def _solve(self, nodes: list[Tensor], z: Tensor, alpha: Tensor, bend: Tensor) -> Tensor:
        """rho ``(grid, len(nodes))`` of the published system, batched over the grid and
        differentiable in the nodes.
        """
        points = torch.stack(nodes, dim=1)
        size = len(nodes)
        matrix = torch.stack([points**i for i in range(size)], dim=1)
        right = [math.factorial(i) * z * phi(i + 1, z) * -alpha / bend for i in range(1, size + 1)]
        return torch.linalg.solve(matrix, torch.stack(right, dim=1))
