r"""UniPC (Zhao et al., 2023): a predictor-corrector that reuses the next evaluation.

With z = -h the published system is :math:`R \rho = b`, :math:`R_{ij} = r_j^{i-1}`,
:math:`b_i = i!\, z \phi_{i+1}(z) / B`, where r are the earlier nodes relative to the step (the new
node is r = 1) and B(h) is z ("bh1") or :math:`e^z - 1` ("bh2"). Order 2's predictor and order 1's
corrector use the published 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from indis.denoise import Form
from indis.noise import NoiseSchedule
from indis.numerics import phi
from indis.solvers.base import Coefficients, Nodes, step_order


@dataclass(frozen=True)
class UniPC:
    """Orders 1 to 3 with the corrector on all steps but the last.

    Where log-SNR is infinite at the end of the last step, that step is of first order whatever
    ``lower_order_final`` says.
    """

    name = "unipc"

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

    def form(self, native: Form, schedule: NoiseSchedule) -> Form:
        """Data."""
        return Form.DATA

    def kind(self, k: int, steps: int, *, singular_end: bool) -> Hashable:
        """The order of the step, and whether it is corrected."""
        lower = self.lower_order_final
        order = step_order(self.order, k, steps, lower_final=lower, singular_end=singular_end)
        return order, k + 1 < steps

    def coefficients(self, nodes: Nodes, kind: Hashable) -> Coefficients:
        """Compute predictor weights and, before the last step, corrector weights."""
        assert isinstance(kind, tuple)
        order, corrected = kind
        level, alpha, sigma = nodes.log_snr, nodes.alpha[..., -1], nodes.sigma
        z = level[..., -2] - level[..., -1]
        ratios = [(level[..., -2 - j] - level[..., -2]) / -z for j in range(1, order)]
        unit = -alpha * torch.expm1(z)  # -alpha z phi_1(z)
        bend = -alpha * z if self.variant == "bh1" else unit
        system = _System(z, alpha, unit, bend)
        correct = system.correct(ratios) if corrected else None
        return Coefficients(sigma[..., -1] / sigma[..., -2], system.predict(ratios), unit, correct)

    def nfe(self, steps: int) -> int:
        """One evaluation a step: the corrector is free."""
        return steps


@dataclass(frozen=True)
class _System:
    """The published linear system of one step; all fields are ``(...)``."""

    z: Tensor
    alpha: Tensor
    unit: Tensor
    bend: Tensor  # -alpha B(h)

    def predict(self, ratios: list[Tensor]) -> Tensor:
        """Predictor weights ``(..., order)`` of earlier nodes ``ratios``, each ``(...)``."""
        half = [torch.full_like(self.z, 0.5)]
        rho = half if len(ratios) == 1 else self._solve(ratios)
        older = [self.bend * own / r for own, r in zip(rho, ratios, strict=True)]
        return torch.stack([self.unit - sum(older), *older], dim=-1)

    def correct(self, ratios: list[Tensor]) -> Tensor:
        """Corrector weights ``(..., 1 + order)``, that of the new node first."""
        nodes = [*ratios, torch.ones_like(self.z)]
        rho = self._solve(nodes) if ratios else [torch.full_like(self.z, 0.5)]
        older = [self.bend * own / r for own, r in zip(rho[:-1], ratios, strict=True)]
        new = self.bend * rho[-1]
        return torch.stack([new, self.unit - new - sum(older), *older], dim=-1)

    def _solve(self, nodes: list[Tensor]) -> list[Tensor]:
        """Solve for rho, one ``(...)`` for each node; differentiable in the nodes."""
        if not nodes:
            return []
        size, z = len(nodes), self.z
        points = torch.stack(nodes, dim=-1)
        matrix = torch.stack([points**i for i in range(size)], dim=-2)
        factor = -self.alpha / self.bend
        right = [math.factorial(i) * z * phi(i + 1, z) * factor for i in range(1, size + 1)]
        solution: Tensor = torch.linalg.solve(matrix, torch.stack(right, dim=-1))
        return list(solution.unbind(-1))
