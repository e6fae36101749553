r"""Look, plan, then correct place by place: a closed loop whose steps differ across the picture.
Beyond the paper.

A discretization says the same to every place of a sample, but what few steps miss differs: smooth
parts are settled when edges and texture still move. So after every evaluation a tiny network reads
what is known at each place, the state x_k, the denoised sample D_k and how far it has moved, and
adds to the denoised sample that the step heads for:

.. math::
    E_k &= m_1 (D_k - D_{k-1}) + m_2 (D_{k-1} - D_{k-2}) + r \\
    x_{k+1} &= step(x_k) + (\alpha_{k+1} - \alpha_k \sigma_{k+1} / \sigma_k) E_k

:math:`m_1, m_2` are one number a place, bounded by a tanh: *weights* of its own for what came before, which add up to
what the solver's do. :math:`r` is a *free* picture. The last layer starts at zero, so an untrained policy is its base
solver. No evaluation is added, and nothing of the model is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.plan import Plan
from indis.policies.closed import ClosedLoop, Looking
from indis.policies.encoders import as_frames

Correction = Literal["both", "weights", "free"]
PAST = 2  # differences of denoised samples that have weights


class PlaceReader(nn.Module):
    """``(batch, outputs, *places)`` from maps ``(batch, channels, *places)`` and ``context``
    ``(batch, dim)``.

    Pictures are read at half their resolution, which costs a quarter, and videos frame by frame; a
    vector is one place.
    """

    def __init__(
        self, shape: tuple[int, ...], views: int, context: int, outputs: int, width: int
    ) -> None:
        super().__init__()
        self.pictures = len(shape) > 1
        channels = views * shape[0]
        if self.pictures:
            self.enter: nn.Module = nn.Conv2d(channels, width, 4, stride=2, padding=1)
            self.inner: nn.Module = nn.Conv2d(width, width, 3, padding=1)
            self.leave: nn.Module = nn.Conv2d(width, 4 * outputs, 3, padding=1)
        else:
            self.enter, self.inner = nn.Linear(channels, width), nn.Linear(width, width)
            self.leave = nn.Linear(width, outputs)
        self.context = nn.Linear(context, width, bias=False)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor, context: Tensor) -> Tensor:
        """One output a place."""
        if maps.ndim == 5:
            frames = maps.shape[2]
            pictures = self(as_frames(maps), context.repeat_interleave(frames, dim=0))
            return pictures.unflatten(0, (len(maps), frames)).transpose(1, 2)
        hidden, known = self.enter(self._even(maps)), self.context(context)
        hidden = F.silu(hidden + (known[:, :, None, None] if self.pictures else known))
        out: Tensor = self.leave(F.silu(self.inner(hidden)))
        if not self.pictures:
            return out
        height, width = maps.shape[2:]
        return F.pixel_shuffle(out, 2)[:, :, :height, :width]

    def _even(self, maps: Tensor) -> Tensor:
        """Odd sides get a row more."""
        if not self.pictures:
            return maps
        return F.pad(maps, (0, maps.shape[3] % 2, 0, maps.shape[2] % 2), mode="replicate")


class LocalLoop(ClosedLoop):
    """A :class:`ClosedLoop` that also corrects each place; ``local_width`` is that of the network
    that does.
    """

    rate = 0.02  # of its weights, relative to a bare logit's
    corrects: ClassVar[bool] = True

    def __init__(self, *args: Any, local: Correction, local_width: int, **closed: Any) -> None:
        super().__init__(*args, **closed)
        self.local, self.local_width = local, local_width
        self.sizes = [0 if local == "free" else PAST, 0 if local == "weights" else self.shape[0]]
        self.places = PlaceReader(
            self.shape, 3, self.steps + self.condition_dim, sum(self.sizes), local_width
        )

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """A plan that is still open: it looks when the loop asks it to decide."""
        return _Correcting(self, features)

    def correction(
        self, k: int, state: Tensor, data: list[Tensor], features: Tensor | None
    ) -> Tensor:
        """E_k ``(batch, *shape)`` from the state at unit variance and the denoised samples, newest
        first.
        """
        moved = [a - b for a, b in zip(data, [*data[1:], data[-1]], strict=True)]
        dtype = self.places.context.weight.dtype
        number = F.one_hot(torch.full((len(state),), k, device=state.device), self.steps)
        context = (
            number
            if features is None or not self.condition_dim
            else torch.cat([number, features], dim=1)
        )
        out = self.places(
            torch.cat([state, data[0], moved[0]], dim=1).to(dtype), context.to(dtype)
        ).to(state)
        weights, free = out.split(self.sizes, dim=1)
        total = free if self.sizes[1] else torch.zeros_like(state)
        for share, difference in zip(torch.tanh(weights).unbind(1), moved[:-1], strict=False):
            total = total + share[:, None] * difference
        return total

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """What reads places has a rate of its own."""
        local = {id(p) for p in self.places.parameters()}
        rest = [([p for p in group if id(p) not in local], rate) for group, rate in super().rates()]
        return [*rest, (list(self.places.parameters()), self.rate)]

    def describe(self) -> dict[str, Any]:
        """Also how places are corrected."""
        return super().describe() | {"local": self.local, "local_width": self.local_width}

    @classmethod
    def _own(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return super()._own(config, tensors) | {
            name: config[name] for name in ("local", "local_width")
        }


@dataclass
class _Correcting(Looking):
    """Also remembers the denoised samples of the run."""

    policy: LocalLoop
    data: list[Tensor] = field(default_factory=list)

    def start(self) -> tuple[Tensor, Tensor]:
        self.data = []
        return super().start()

    def correction(self, k: int, view: Tensor) -> Tensor | None:
        """E_k; before anything could move there is nothing to weigh."""
        state, data = view.chunk(2, dim=1)
        self.data = [data, *self.data][: PAST + 1]
        if k == 0 and self.policy.local == "weights":
            return None
        return self.policy.correction(k, state, self.data, self.features)
