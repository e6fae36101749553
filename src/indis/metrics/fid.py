"""FID as EDM's ``fid.py`` computes it: 8-bit samples, Inception's pooled features, a reference.

The features are those of the Inception-v3 that was ported from TensorFlow in 2015, through
torch-fidelity, with a weight file that the user has. References are NVIDIA's ``npz`` files or a
folder of images. Distances in other features go by other names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.metrics.frechet import Moments
from indis.pixels import to_bytes, to_pixels

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # of torch-fidelity's release 0.2.0
INCEPTION, COARSE = 2048, 192  # numbers of features
PICTURES = (".jpeg", ".jpg", ".png")


class Inception(nn.Module):
    """Inception's 2048 pooled features of pictures.

    Args:
        weights: torch-fidelity's weight file, :data:`WEIGHTS`.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if torch-fidelity is not installed.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} does not exist; FID needs {WEIGHTS}")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ImportError(
                "FID needs the torch-fidelity package: pip install indis-diffusion[fid]"
            ) from None
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            [str(INCEPTION)],
            feature_extractor_weights_path=str(weights),
        ).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(batch, 2048)`` of images ``(batch, 3, height, width)`` in [-1, 1]."""
        return self.network(to_bytes(images))[0]


def coarse_pixels(images: Tensor) -> Tensor:
    """Return the mean colours ``(batch, 192)`` of 8 x 8 cells of 8-bit images.

    They need no weights. Their Frechet distance sees colours and layout and no detail; it is not
    FID.

    Args:
        images: ``(batch, 3, height, width)`` in [-1, 1].
    """
    return F.adaptive_avg_pool2d(to_pixels(to_bytes(images)), 8).flatten(1)


def moments_from_npz(path: Path) -> Moments:
    """Return the moments in an ``npz`` file such as NVIDIA's, with arrays ``mu`` and ``sigma``.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
    except (KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{path} must hold the arrays mu and sigma: {error}") from None
    # A count of two makes the scatter the covariance; nothing is added to a reference.
    parts = {"count": torch.tensor(2), "mean": mean, "scatter": covariance}
    return Moments.from_tensors(parts)


def image_batches(folder: Path, shape: tuple[int, ...], batch: int = 250) -> Iterator[Tensor]:
    """Yield the images in a folder and below, in the order of their paths.

    Args:
        folder: the folder.
        shape: of each image, ``(3, height, width)``; they are not resized.
        batch: how many are read at once.

    Yields:
        ``(at most batch, *shape)`` in [-1, 1].

    Raises:
        ValueError: if there are fewer than two, or one has another size.
    """
    from PIL import Image

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if len(paths) < 2:
        raise ValueError(f"{folder} must hold at least two images, got {len(paths)}")
    for start in range(0, len(paths), batch):
        images = []
        for path in paths[start : start + batch]:
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            if tuple(pixels.shape) != shape:
                given, wanted = ("x".join(map(str, s[:0:-1])) for s in (pixels.shape, shape))
                raise ValueError(f"{path} must be of {wanted} pixels, got {given}")
            images.append(pixels)
        yield to_pixels(torch.stack(images))
