"""Fashion-MNIST (Xiao et al., 2017, MIT licence): 28x28 grey clothes in ten balanced classes.

Read from the four ``*-ubyte.gz`` files of the original distribution. Debian ships them as the
package ``dataset-fashion-mnist``; any other folder that holds the files works too.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def read(split: Literal["train", "t10k"], folder: Path = DEBIAN_FOLDER) -> tuple[Tensor, Tensor]:
    """Return the images and labels of one split.

    Args:
        split: the training set of 60 000 images or the test set of 10 000.
        folder: where the four ``*-ubyte.gz`` files lie.

    Returns:
        Images ``(count, 1, 28, 28)``, uint8, and labels ``(count,)``, int64.

    Raises:
        FileNotFoundError: if the folder does not hold the data set.
        ValueError: if a file is damaged or holds something else.
    """
    images = _idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = _idx(folder / f"{split}-labels-idx1-ubyte.gz")
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder} holds images {images.shape} and labels {labels.shape}, not Fashion-MNIST"
        )
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()


def _idx(path: Path) -> np.ndarray:
    """Read one array in IDX format.

    That is two zero bytes, a type byte, the number of axes, their sizes (big-endian), the data.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: install Debian's dataset-fashion-mnist or give the folder of the "
            "*-ubyte.gz files"
        )
    try:
        raw = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    header = 4 + 4 * raw[3]
    sizes = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4)]
    if len(raw) - header != math.prod(sizes):
        raise ValueError(
            f"{path} is damaged: its header promises {math.prod(sizes)} bytes, it holds "
            f"{len(raw) - header}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(sizes).copy()
