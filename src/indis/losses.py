"""Losses: distances between a student's and the teacher's end points, one number a sample.

A loss is a function ``(student, teacher) -> (batch,)`` of *decoded* samples in [-1, 1]. Model
families bring losses of their own (:func:`indis.models.loss`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean square differences ``(batch,)`` of samples ``(batch, *shape)``."""
    return (student - teacher).square().flatten(1).mean(1)


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared Euclidean distances ``(batch,)`` of samples ``(batch, *shape)``.

    This is the sum that :func:`mse` averages, and the unit of the toy study.
    """
    return (student - teacher).square().flatten(1).sum(1)


class LPIPS(nn.Module):
    """The published LPIPS (Zhang et al., 2018) through the ``lpips`` package; the paper's loss.

    Args:
        net: the feature network of the package, "vgg", "alex" or "squeeze".

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
        """Return the distances of images, for videos the means over their frames.

        Args:
            student: images ``(batch, 1 or 3, height, width)`` in [-1, 1]; grey is repeated over
                three channels. Videos ``(batch, channels, frames, height, width)``.
            teacher: images of the same shape.

        Returns:
            ``(batch,)``.

        Raises:
            ValueError: if the samples are no such images.
        """
        if student.dim() == teacher.dim() == 5:
            frames = (video.transpose(1, 2).flatten(0, 1) for video in (student, teacher))
            return self(*frames).unflatten(0, (len(student), -1)).mean(1)
        return self.network(_in_colour(student), _in_colour(teacher)).flatten()


def _in_colour(images: Tensor) -> Tensor:
    if images.dim() != 4 or images.shape[1] not in (1, 3):  # else the network fails deep inside
        raise ValueError(
            f"lpips needs images (batch, 1 or 3, height, width), got shape {tuple(images.shape)}"
        )
    return images.expand(-1, 3, -1, -1)


LOSSES: dict[str, Callable[[], Loss]] = {
    "mse": lambda: mse,
    "squared": lambda: squared_distance,
    "lpips": LPIPS,
}


def named(name: str) -> Loss:
    """Return the loss of a name: "mse", "squared" or "lpips".

    Raises:
        ValueError: if the name is unknown.
        ImportError: if the loss needs a package that is not installed.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    return LOSSES[name]()
