"""Pixels as networks see them, float in [-1, 1], and as files hold them, uint8."""

from __future__ import annotations

import torch
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]; any shape."""
    return images.float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """[-1, 1] to uint8 as EDM rounds it; any shape."""
    return (pixels * 127.5 + 128).clamp(0, 255).to(torch.uint8)
