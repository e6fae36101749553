"""Features of 28x28 grey images: a small Fashion-MNIST classifier, read out at several depths.

One network serves two metrics. Its pooled penultimate layer feeds the Frechet distance between sets
of images. It is not FID: these features compare only with themselves. Its feature maps feed a
perceptual distance between pairs, built as in LPIPS (Zhang et al., 2018). Every operation is smooth
(SiLU, average pooling), because gradients of that loss pass through it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from indis.losses import Loss
from indis.metrics.frechet import Moments
from indis.storage import load_tensors

FOLDER = Path(__file__).parent / "weights"
WEIGHTS = FOLDER / "fashion_features.safetensors"
MOMENTS = FOLDER / "fashion_moments.safetensors"

POOLED = 128  # channels of the penultimate layer
WIDTHS = (24, 48, 96)  # channels at 28x28, 14x14 and 7x7


class Residual(nn.Module):
    """A 3 x 3 block added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, channels, height, width)`` for an input of that shape."""
        return x + self.block(x)


class FashionFeatures(nn.Module):
    """The classifier, of 169 thousand parameters; images are ``(batch, 1, 28, 28)`` in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.stages = nn.ModuleList(
            [
                _block(1, first),
                nn.Sequential(nn.AvgPool2d(2), _block(first, second)),
                Residual(second),
                nn.Sequential(nn.AvgPool2d(2), _block(second, third)),
                Residual(third),
            ]
        )
        self.top = _block(third, POOLED, kernel=1)
        self.head = nn.Linear(POOLED, 10)

    def layers(self, x: Tensor) -> list[Tensor]:
        """Return five feature maps, shallow to deep.

        They have 24 channels at 28 x 28, twice 48 at 14 x 14, and twice 96 at 7 x 7.

        Raises:
            ValueError: if ``x`` is not a batch of grey images.
        """
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(
                f"Fashion-MNIST features need grey images (batch, 1, 28, 28), got {tuple(x.shape)}"
            )
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """Return the penultimate layer averaged over space, ``(batch, 128)``."""
        return self.top(self.layers(x)[-1]).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits ``(batch, 10)``."""
        return self.head(self.pooled(x))


def load(weights: Path = WEIGHTS) -> FashionFeatures:
    """Return the trained network in float32, frozen and in evaluation mode.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or holds another network.
    """
    network = FashionFeatures()
    try:
        network.load_state_dict(
            {
                k: v.float() if v.is_floating_point() else v
                for k, v in load_tensors(weights)[0].items()
            }
        )
    except RuntimeError as error:
        raise ValueError(f"{weights} does not hold a FashionFeatures network: {error}") from None
    return network.eval().requires_grad_(False)


def load_moments(path: Path = MOMENTS) -> Moments:
    """Return the moments of the pooled features of the 60 000 training images, none flipped.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged.
    """
    return Moments.from_tensors(load_tensors(path)[0])


class PooledFeatures(nn.Module):
    """The pooled layer of a classifier as a feature extractor for Frechet distances."""

    def __init__(self, network: FashionFeatures) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(batch, 128)`` of images ``(batch, 1, 28, 28)`` in [-1, 1]."""
        return self.network.pooled(images)


def frechet_judge(folder: Path | None = None) -> tuple[PooledFeatures, Moments]:
    """Return what FD-Fashion needs: a feature extractor and the moments of the training images.

    Args:
        folder: a folder that ``indis bench train --what features`` wrote; the shipped network if
            None.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged.
    """
    folder = folder or FOLDER
    return PooledFeatures(load(folder / WEIGHTS.name)), load_moments(folder / MOMENTS.name)


class PerceptualLoss(nn.Module):
    """A distance of images in a classifier's features, as a loss.

    Args:
        distance: :func:`perceptual_distance` or :func:`dists`.
        folder: a folder that ``indis bench train --what features`` wrote; the shipped network if
            None.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it is damaged.
    """

    def __init__(
        self,
        distance: Callable[[FashionFeatures, Tensor, Tensor], Tensor],
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.network = load((folder or FOLDER) / WEIGHTS.name)
        self.distance = distance

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distances ``(batch,)`` of images ``(batch, 1, 28, 28)``."""
        return self.distance(self.network, student, teacher)


def perceptual_distance(network: FashionFeatures, a: Tensor, b: Tensor) -> Tensor:
    """Return an LPIPS-like distance of each pair of images, with finite gradients everywhere.

    At each depth channel vectors are scaled to unit length, and their squared differences are
    summed over channels and averaged over space. The result is the plain mean over depths.

    Args:
        network: the feature network.
        a: images ``(batch, 1, 28, 28)`` in [-1, 1].
        b: images of the same shape.

    Returns:
        Distances ``(batch,)`` in [0, 4].

    Raises:
        ValueError: if the shapes differ.
    """
    _require_alike(a, b)
    pairs = zip(network.layers(a), network.layers(b), strict=True)
    depths = [(_unit(left) - _unit(right)).square().sum(1).mean((1, 2)) for left, right in pairs]
    return torch.stack(depths).mean(0)


def dists(network: FashionFeatures, a: Tensor, b: Tensor) -> Tensor:
    """Return DISTS (Ding et al., 2020, eq. 4 to 6), a distance that does not reward blur.

    It is one minus the mean of two similarities of each channel of the image and of each feature
    map: that of its averages over space and its correlation over space. All weights are equal
    instead of learned. Between pictures that cannot be matched point by point, a squared difference
    is smallest for a blurred one; this distance is not.

    Args:
        network: the feature network.
        a: images ``(batch, 1, 28, 28)`` in [-1, 1].
        b: images of the same shape.

    Returns:
        Distances ``(batch,)`` in [0, 2].

    Raises:
        ValueError: if the shapes differ.
    """
    _require_alike(a, b)
    pairs = zip([a, *network.layers(a)], [b, *network.layers(b)], strict=True)
    return torch.stack([1 - _similarity(left, right).mean(1) for left, right in pairs]).mean(0)


LOSSES: dict[str, Callable[[Path | None], Loss]] = {
    "fashion": partial(PerceptualLoss, perceptual_distance),
    "fashion-dists": partial(PerceptualLoss, dists),
}


def _require_alike(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:  # they would be broadcast
        raise ValueError(
            f"a has shape {tuple(a.shape)} and b has {tuple(b.shape)}, equal shapes are expected"
        )


def _similarity(a: Tensor, b: Tensor, floor: float = 1e-6) -> Tensor:
    """The mean of the similarities of texture and structure, ``(batch, channels)``, at most 1."""
    means = a.mean((2, 3)), b.mean((2, 3))
    variances = a.var((2, 3), unbiased=False), b.var((2, 3), unbiased=False)
    covariance = (a * b).mean((2, 3)) - means[0] * means[1]
    texture = (2 * means[0] * means[1] + floor) / (means[0] ** 2 + means[1] ** 2 + floor)
    structure = (2 * covariance + floor) / (variances[0] + variances[1] + floor)
    return (texture + structure) / 2


def _unit(maps: Tensor, floor: float = 1e-6) -> Tensor:
    """Channel vectors at unit length; the floor keeps the gradient finite at a zero vector."""
    return maps * (maps.square().sum(1, keepdim=True) + floor).rsqrt()


def _block(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())
