"""Model families: one module each, with a ``load`` that returns a frozen denoiser.

``models.load("fashion")`` imports only that family, so a heavy dependency costs only those who use
it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from indis.denoise import Denoiser

FAMILIES = {
    "toy": "the exact 2-D tree mixture; toy:AB has both classes",
    "fashion": "class-conditional Fashion-MNIST, ships; fashion:PATH loads other weights, a file or a folder",
}


def load(spec: str, device: torch.device | str = "cpu") -> Denoiser:
    """The denoiser that ``family`` or ``family:detail`` means, on a device.

    Raises:
        ValueError: if the family is unknown.
        FileNotFoundError: if a weight file is missing.
    """
    family, _, detail = spec.partition(":")
    if family not in FAMILIES:
        raise ValueError(f"model must be one of {', '.join(FAMILIES)}, got {family!r}")
    module = import_module(f"indis.models.{family}")
    if not detail:
        return module.load().to(device)
    return module.load(Path(detail) if family == "fashion" else detail).to(device)


def name_of(spec: str) -> str:
    """What the denoiser of a spec calls itself, without loading it: other weights are no other
    model.
    """
    family, _, detail = spec.partition(":")
    return family if family == "fashion" or detail in ("", "A") else f"{family}-{detail}"
