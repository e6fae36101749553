r"""Spatial correction: steps that differ across the picture. Beyond the paper.

A plan is the same for every place of a sample, but what few steps miss differs: smooth parts are
settled when edges and texture still move. So after every evaluation a tiny network reads what is
known at each place, the state x_k, the denoised sample D_k and how far it has moved, and adds to
the denoised sample of the step:

.. math::
    E_k &= m_1 (D_k - D_{k-1}) + m_2 (D_{k-1} - D_{k-2}) + r \\
    x_{k+1} &= step(x_k) + (\alpha_{k+1} - \alpha_k \sigma_{k+1} / \sigma_k) E_k

:math:`m_1, m_2` are *weights*, one number a place, bounded by a tanh; they add up with the
solver's own. :math:`r` is a *free* picture. The last layer starts at zero, so an untrained
corrector changes nothing. No evaluation is added, and nothing of the model is changed.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.policies.encoders import as_frames

Picture = Literal["weights", "free", "both"]
PAST = 2  # differences of denoised samples that have weights


class SpatialCorrector(nn.Module):
    """Computes E_k of every place.

    Pictures are read at half their resolution, which costs a quarter, and videos frame by frame; a
    vector is one place.

    Args:
        shape: of a sample.
        steps: number of steps of the plan.
        condition_dim: number of condition features; 0 to ignore the condition.
        kind: "weights", "free" or "both".
        width: channels of the hidden layers.
    """

    def __init__(
        self, shape: tuple[int, ...], steps: int, condition_dim: int, kind: Picture, width: int
    ) -> None:
        super().__init__()
        self.steps, self.condition_dim, self.kind = steps, condition_dim, kind
        self.sizes = [0 if kind == "free" else PAST, 0 if kind == "weights" else shape[0]]
        self.pictures = len(shape) > 1
        channels, outputs = 3 * shape[0], sum(self.sizes)
        if self.pictures:
            self.enter: nn.Module = nn.Conv2d(channels, width, 4, stride=2, padding=1)
            self.inner: nn.Module = nn.Conv2d(width, width, 3, padding=1)
            self.leave: nn.Module = nn.Conv2d(width, 4 * outputs, 3, padding=1)
        else:
            self.enter, self.inner = nn.Linear(channels, width), nn.Linear(width, width)
            self.leave = nn.Linear(width, outputs)
        self.context = nn.Linear(steps + condition_dim, width, bias=False)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, k: int, state: Tensor, data: list[Tensor], features: Tensor | None
    ) -> Tensor | None:
        """Return E_k ``(batch, *shape)``, or None where there is nothing to weigh yet.

        Args:
            k: number of the step.
            state: the state at unit variance, ``(batch, *shape)``.
            data: the latest denoised samples, newest first, at most PAST + 1.
            features: of the condition, ``(batch, condition_dim)``.
        """
        if k == 0 and self.kind == "weights":
            return None
        moved = [a - b for a, b in zip(data, [*data[1:], data[-1]], strict=True)]
        dtype = self.context.weight.dtype
        context = F.one_hot(torch.full((len(state),), k, device=state.device), self.steps)
        if features is not None and self.condition_dim:
            context = torch.cat([context, features], dim=1)
        maps = torch.cat([state, data[0], moved[0]], dim=1)
        weights, free = (
            self.read(maps.to(dtype), context.to(dtype)).to(state).split(self.sizes, dim=1)
        )
        total = free if self.sizes[1] else torch.zeros_like(state)
        for share, difference in zip(torch.tanh(weights).unbind(1), moved[:-1], strict=False):
            total = total + share[:, None] * difference
        return total

    def read(self, maps: Tensor, context: Tensor) -> Tensor:
        """Return the outputs of every place, ``(batch, outputs, *places)``.

        Args:
            maps: ``(batch, channels, *places)``.
            context: ``(batch, steps + condition_dim)``.
        """
        if maps.ndim == 5:
            frames = maps.shape[2]
            pictures = self.read(as_frames(maps), context.repeat_interleave(frames, dim=0))
            return pictures.unflatten(0, (len(maps), frames)).transpose(1, 2)
        known = self.context(context)
        if not self.pictures:
            out: Tensor = self.leave(F.silu(self.inner(F.silu(self.enter(maps) + known))))
            return out
        height, width = maps.shape[2:]
        even = F.pad(maps, (0, width % 2, 0, height % 2), mode="replicate")
        hidden = F.silu(self.enter(even) + known[:, :, None, None])
        out = self.leave(F.silu(self.inner(hidden)))
        return F.pixel_shuffle(out, 2)[:, :, :height, :width]
