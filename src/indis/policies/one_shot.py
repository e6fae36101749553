r"""ALD3's one-shot predictor: a network reads x_T and hands out the interval fractions of its
sample.

Source: github.com/ConnorReed246/ALD3 (2025), read for facts.

.. math:: u_k = u_0 + (u_N - u_0) \sum_{j<k} p_j, \qquad p_j = softplus(z_j) / \sum_i softplus(z_i)

in a coordinate :math:`u`, log-SNR as published, with both ends fixed. Timesteps are all that is
learned.

Two things differ from the published head. It has N outputs, since of N + 1 one cancels in the fixed
ends; and z has a constant part that makes the fractions those of a *base grid* where the network
says zero, as an untrained one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.noise import NoiseSchedule
from indis.numerics import TIME_DTYPE
from indis.plan import LOGIT_ROWS, Bounds, coordinate
from indis.policies.base import LogitPolicy
from indis.policies.encoders import trunk_for

_TINY = 1e-7  # published: keeps the sum of the fractions from zero


class OneShot(LogitPolicy):
    """The learned policy; of ``bounds`` only ``domain`` and ``floor`` matter. Untrained, it is its
    base bit for bit.
    """

    offset: Tensor

    def __init__(
        self,
        base: Tensor,
        schedule: NoiseSchedule,
        bounds: Bounds,
        order: int = 0,
        *,
        shape: tuple[int, ...],
        width: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__(base, schedule, bounds, order)
        self.shape, self.width, self.depth = tuple(shape), width, depth
        self.trunk = trunk_for(self.shape, width, depth)
        self.mix, self.head = nn.Linear(width, width), nn.Linear(width, self.steps)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("offset", self._offset(), persistent=False)

    def logits(self, noise: Tensor, features: Tensor | None, index: Tensor | None) -> Tensor:
        """A fraction is a softmax of logarithms: those of the shares, relative to the base
        grid's.
        """
        hidden = F.silu(self.mix(self.trunk(noise.to(self.head.weight.dtype))))
        raw = self.head(hidden).to(TIME_DTYPE)
        moved = _log_share(raw + self.offset) - _log_share(self.offset)
        return F.pad(moved[:, None], (0, 0, 0, LOGIT_ROWS - 1))

    def describe(self) -> dict[str, Any]:
        """Also how the network is built."""
        return super().describe() | {
            "network": {name: getattr(self, name) for name in ("shape", "width", "depth")}
        }

    @classmethod
    def _own(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return config["network"] | {"shape": tuple(config["network"]["shape"])}

    def _offset(self) -> Tensor:
        """The z whose softplus are the base grid's fractions times N, ``(1, steps)``."""
        to, _ = coordinate(self.schedule, self.bounds.domain)
        level = to(self.base)
        share = self.steps * level.diff(dim=1) / (level[:, -1:] - level[:, :1])
        return share + (-torch.expm1(-share)).log()


def _log_share(raw: Tensor) -> Tensor:
    return F.softplus(raw).clamp_min(_TINY).log()
