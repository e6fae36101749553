"""Losses: distances between a student's and the teacher's end points, one number a sample.

A loss is a function ``(student, teacher) -> (batch,)`` of *decoded* samples in [-1, 1]; the paper
uses LPIPS.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference over all axes but the first."""
    return (student - teacher).square().flatten(1).mean(1)


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared Euclidean distance, the sum that :func:`mse` averages; the unit of the toy study."""
    return (student - teacher).square().flatten(1).sum(1)


class FashionPerceptual(nn.Module):
    """A distance in a small Fashion-MNIST classifier: of unit-normalised feature maps, or DISTS.

    ``folder`` holds another classifier than the one that ships (``indis train-model --what
    features``).

    Raises:
        FileNotFoundError: if there is none in it.
        ValueError: if it is damaged.
    """

    def __init__(self, kind: str = "perceptual_distance", folder: Path | None = None) -> None:
        super().__init__()
        from indis.models import fashion_features as features

        self.network = features.load((folder or features.FOLDER) / features.WEIGHTS.name)
        self.distance = getattr(features, kind)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``(batch,)`` from images ``(batch, 1, 28, 28)``."""
        return self.distance(self.network, student, teacher)


class LPIPS(nn.Module):
    """The published LPIPS (Zhang et al., 2018) through the ``lpips`` package.

    Raises:
        ImportError: if the package is not installed.
    """

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        try:
            import lpips
        except ImportError:
            raise ImportError(
                "loss 'lpips' needs the lpips package: pip install indis-diffusion[lpips]"
            ) from None
        self.network = lpips.LPIPS(net=net, verbose=False).eval().requires_grad_(False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``(batch,)`` from images ``(batch, 1 or 3, height, width)``; grey is repeated over three
        channels.

        Raises:
            ValueError: if the samples are not such images.
        """
        return self.network(_colour(student), _colour(teacher)).flatten()


def _colour(images: Tensor) -> Tensor:
    if images.dim() != 4 or images.shape[1] not in (1, 3):  # else the network fails deep inside
        raise ValueError(
            f"lpips needs images (batch, 1 or 3, height, width), got shape {tuple(images.shape)}"
        )
    return images.expand(-1, 3, -1, -1)


PERCEPTUAL = {
    "fashion": "perceptual_distance",
    "fashion-dists": "dists",
}  # in features of Fashion-MNIST
LOSSES: dict[str, Callable[[], Loss]] = {
    "mse": lambda: mse,
    "squared": lambda: squared_distance,
    **{name: partial(FashionPerceptual, kind) for name, kind in PERCEPTUAL.items()},
    "lpips": LPIPS,
}


def named(name: str, features: Path | None = None) -> Loss:
    """The loss of a name, in the classifier of the folder ``features`` if one is given.

    Raises:
        ValueError: if there is none, or it has no such features.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    if features is None:
        return LOSSES[name]()
    if name not in PERCEPTUAL:
        raise ValueError(
            f"loss must be {' or '.join(PERCEPTUAL)} for features of choice, got {name!r}"
        )
    return FashionPerceptual(PERCEPTUAL[name], features)
