"""Trunks: how phi reads a starting noise.

A trunk maps unit noise ``(batch, *shape)`` to ``(batch, width)``. The vector trunk is a perceptron
for low-dimensional toys. The convolutional trunk is light and takes any resolution: strided
convolutions, then an adaptive average onto a small grid of cells, so that *where* in the picture
the noise leans survives, which a global average would erase. Of a video it reads every frame so,
and averages over the frames of either half.

A trunk's ``rate`` says how fast the weights of a network on it learn, relative to a bare logit.
Under Adam every weight moves by about the rate in a step, and a logit sums over the whole width of
them: at equal rates the network would overrun the plan that it refines.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

LEAST_SIDE = 4  # of a picture: the two strides halve it twice


class VectorTrunk(nn.Module):
    """A perceptron with ``depth`` hidden layers."""

    rate = 0.03  # on the toy 0.01 is slower

    def __init__(self, size: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [size, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, noise: Tensor) -> Tensor:
        """``(batch, size)`` to ``(batch, width)``."""
        hidden = noise.flatten(1)
        for layer in self.layers:
            hidden = F.silu(layer(hidden))
        return hidden


class ConvTrunk(nn.Module):
    """Three strided convolutions, an adaptive average onto ``cells`` x ``cells``, a linear layer.

    With ``halves`` the samples are videos, of which it sees what is on average in each part.
    """

    rate = 0.007  # on Fashion-MNIST 0.016 and more overshoot for half of a short fit

    def __init__(self, channels: int, width: int, cells: int = 4, halves: int = 0) -> None:
        super().__init__()
        narrow = max(8, width // 4)
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, narrow, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(narrow, 2 * narrow, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * narrow, 2 * narrow, 3, padding=1),
            nn.SiLU(),
        )
        self.cells, self.halves = cells, halves
        self.out = nn.Linear(2 * narrow * cells**2 * max(1, halves), width)

    def forward(self, noise: Tensor) -> Tensor:
        """``(batch, channels, [frames,] height, width)`` to ``(batch, width)``."""
        maps = F.adaptive_avg_pool2d(self.convolutions(as_frames(noise)), self.cells)
        if self.halves:
            own = maps.flatten(1).unflatten(0, (len(noise), -1)).transpose(1, 2)
            maps = F.adaptive_avg_pool1d(own, self.halves)
        return F.silu(self.out(maps.flatten(1)))


def trunk_for(shape: tuple[int, ...], width: int, depth: int) -> VectorTrunk | ConvTrunk:
    """The trunk that suits samples of ``shape``: a vector, a picture or a video.

    Raises:
        ValueError: for shapes that no trunk reads.
    """
    if len(shape) == 1:
        return VectorTrunk(math.prod(shape), width, depth)
    if len(shape) in (3, 4) and min(shape[-2:]) >= LEAST_SIDE:
        return ConvTrunk(shape[0], width, halves=2 if len(shape) == 4 else 0)
    raise ValueError(
        "shape must be (size,), (channels, height, width) or (channels, frames, height, width) with sides of at least "
        f"{LEAST_SIDE} for a policy that reads samples, got {shape}"
    )


def as_frames(samples: Tensor) -> Tensor:
    """Pictures from pictures, or from videos ``(batch, channels, frames, height, width)``, one
    frame after another.
    """
    return samples if samples.ndim == 4 else samples.transpose(1, 2).flatten(0, 1)


class Reader(nn.Module):
    """What a sample is, as one vector: its starting noise through a trunk, plus its condition
    through a linear layer.

    ``condition_dim`` 0 means that the noise alone is read.
    """

    def __init__(self, shape: tuple[int, ...], condition_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        self.trunk = trunk_for(tuple(shape), width, depth)
        self.condition = nn.Linear(condition_dim, width) if condition_dim else None

    def forward(self, noise: Tensor, features: Tensor | None) -> Tensor:
        """``(batch, width)`` from unit noise ``(batch, *shape)`` and features ``(batch,
        condition_dim)``.

        Raises:
            ValueError: if features are needed and missing or of another size.
        """
        dtype = next(self.parameters()).dtype
        hidden = self.trunk(noise.to(dtype))
        if self.condition is None:
            return hidden
        if features is None or features.shape[-1] != self.condition_dim:
            given = None if features is None else tuple(features.shape)
            raise ValueError(f"features must be (batch, {self.condition_dim}), got {given}")
        return hidden + self.condition(features.to(dtype))
