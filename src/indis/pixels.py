"""Conversion between pixels of networks, floats in [-1, 1], and of files, uint8."""

from __future__ import annotations

import torch
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """Return uint8 images of any shape as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Return pixels of any shape as uint8, rounded as EDM does it and clipped to [-1, 1]."""
    return (pixels * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def as_stored(pixels: Tensor) -> Tensor:
    """Return pixels as a file of 8-bit pictures gives them back: clipped to [-1, 1] and rounded."""
    return to_pixels(to_bytes(pixels))
