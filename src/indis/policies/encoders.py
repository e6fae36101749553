"""Encoders: how a network reads a sample.

A trunk maps ``(batch, *shape)`` to ``(batch, width)``. Vectors go through a perceptron. Pictures of
any size go through strided convolutions and an adaptive average onto a few cells, so that *where*
in the picture something lies survives; a global average would erase it. Videos are read frame by
frame and averaged over the frames of either half.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

LEAST_SIDE = 4  # of a picture: the two strides halve it twice


class VectorTrunk(nn.Module):
    """A perceptron with ``depth`` hidden layers."""

    def __init__(self, size: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [size, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, noise: Tensor) -> Tensor:
        """Map ``(batch, size)`` to ``(batch, width)``."""
        hidden = noise.flatten(1)
        for layer in self.layers:
            hidden = F.silu(layer(hidden))
        return hidden


class ConvTrunk(nn.Module):
    """Three convolutions, an adaptive average onto ``cells`` x ``cells``, and a linear layer.

    With ``halves`` the samples are videos, which are averaged within each of so many parts.
    """

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
        """Map ``(batch, channels, [frames,] height, width)`` to ``(batch, width)``."""
        maps = F.adaptive_avg_pool2d(self.convolutions(as_frames(noise)), self.cells)
        if self.halves:
            frames = maps.flatten(1).unflatten(0, (len(noise), -1)).transpose(1, 2)
            maps = F.adaptive_avg_pool1d(frames, self.halves)
        return F.silu(self.out(maps.flatten(1)))


def trunk_for(shape: tuple[int, ...], width: int, depth: int) -> VectorTrunk | ConvTrunk:
    """Return the trunk for samples of ``shape``: vectors, pictures or videos.

    Raises:
        ValueError: for shapes that no trunk reads.
    """
    if len(shape) == 1:
        return VectorTrunk(math.prod(shape), width, depth)
    if len(shape) in (3, 4) and min(shape[-2:]) >= LEAST_SIDE:
        return ConvTrunk(shape[0], width, halves=2 if len(shape) == 4 else 0)
    raise ValueError(
        "shape must be (size,), (channels, height, width) or (channels, frames, height, width) "
        f"with sides of at least {LEAST_SIDE} for a policy that reads samples, got {shape}"
    )


def check_shape(fitted: tuple[int, ...], given: tuple[int, ...]) -> None:
    """Refuse samples that a trunk for samples of shape ``fitted`` does not read.

    Pictures and videos may have another size, but not other channels.

    Raises:
        ValueError: if the shape ``given`` is another kind.
    """
    if len(fitted) == 1:
        fits, reads = given == fitted, str(fitted)
    else:
        frames = ", frames" if len(fitted) == 4 else ""
        fits = (len(given), given[:1]) == (len(fitted), fitted[:1])
        fits = fits and min(given[-2:]) >= LEAST_SIDE
        reads = f"({fitted[0]}{frames}, height, width) with sides of at least {LEAST_SIDE}"
    if not fits:
        raise ValueError(
            f"denoiser must have a shape that the sampler's network reads, {reads}, got {given}"
        )


def as_frames(samples: Tensor) -> Tensor:
    """Return pictures as they are, and the frames of videos ``(batch, channels, frames, height,
    width)`` as a batch of pictures.
    """
    return samples if samples.ndim == 4 else samples.transpose(1, 2).flatten(0, 1)


class Encoder(nn.Module):
    """Encodes a sample and its condition: trunk plus a linear layer of the condition, then a layer.

    Args:
        shape: of what is read, without the batch.
        condition_dim: number of condition features; 0 to read the sample alone.
        width: of the hidden layers and of the result.
        depth: number of hidden layers of a perceptron.
    """

    def __init__(
        self, shape: tuple[int, ...], condition_dim: int = 0, width: int = 128, depth: int = 3
    ) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        self.trunk = trunk_for(tuple(shape), width, depth)
        self.condition = nn.Linear(condition_dim, width) if condition_dim else None
        self.mix = nn.Linear(width, width)

    def forward(
        self, sample: Tensor, features: Tensor | None = None, position: Tensor | None = None
    ) -> Tensor:
        """Return ``(batch, width)``.

        Args:
            sample: ``(batch, *shape)``.
            features: of the condition, ``(batch, condition_dim)``.
            position: an embedding ``(batch, width)`` of where the run stands.

        Raises:
            ValueError: if features are needed and missing or of another size.
        """
        dtype = self.mix.weight.dtype
        hidden = self.trunk(sample.to(dtype))
        if self.condition is not None:
            if features is None or features.shape[-1] != self.condition_dim:
                given = None if features is None else tuple(features.shape)
                raise ValueError(f"features must be (batch, {self.condition_dim}), got {given}")
            hidden = hidden + self.condition(features.to(dtype))
        if position is not None:
            hidden = hidden + position
        return F.silu(self.mix(hidden))
