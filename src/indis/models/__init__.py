"""Model families: one module each, with a ``load`` that returns a frozen denoiser.

``models.load("fashion")`` imports only that family, so a heavy dependency costs only those who use
it. ``models.load("package.module:function")`` calls a function of the user's own.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from indis.denoise import Denoiser

FAMILIES = {
    "toy": "exact 2-D mixture; toy:AB has both classes",
    "fashion": "class-conditional Fashion-MNIST, ships; fashion:PATH loads other weights",
}
OWN = "module:function"


def load(spec: str, device: torch.device | str = "cpu") -> Denoiser:
    """Return the denoiser that ``spec`` names, on a device.

    Args:
        spec: ``family`` or ``family:detail`` for a shipped family (:data:`FAMILIES`), or
            ``package.module:function`` or ``package.module:function:detail`` for any importable
            function that returns a denoiser. The function is called with no argument, or with the
            detail as its only one.
        device: Where the denoiser is moved to. A denoiser of the user's own that has no
            ``to(device)`` stays where the function put it.

    Raises:
        ValueError: If the family is unknown, or module or function cannot be found, or the function
            returns something else than a denoiser.
        FileNotFoundError: If a weight file is missing.
    """
    family, _, detail = spec.partition(":")
    if is_own(spec):
        denoiser = _call(spec)
        return denoiser.to(device) if hasattr(denoiser, "to") else denoiser
    if family not in FAMILIES:
        raise ValueError(f"model must be one of {', '.join(FAMILIES)} or {OWN}, got {spec!r}")
    module = import_module(f"indis.models.{family}")
    if not detail:
        return module.load().to(device)
    return module.load(Path(detail) if family == "fashion" else detail).to(device)


def is_own(spec: str) -> bool:
    """Return whether a spec names a function rather than a shipped family."""
    family, colon, _ = spec.partition(":")
    return bool(colon) and family not in FAMILIES


def name_of(spec: str) -> str | None:
    """Return the name of a shipped family's denoiser without loading it; None for other models.

    Other weights of a family have the same name.
    """
    if is_own(spec):
        return None
    family, _, detail = spec.partition(":")
    return family if family == "fashion" or detail in ("", "A") else f"{family}-{detail}"


def _call(spec: str) -> Denoiser:
    """Call the function that a spec names."""
    name, function, *detail = spec.split(":", 2)
    try:
        module = import_module(name)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else name
        known = f"one of {', '.join(FAMILIES)} or {OWN}"
        raise ValueError(
            f"model must be {known}, got {spec!r}: there is no module {missing!r}"
        ) from None
    make = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"model must name a function of {name}, got {spec!r}")
    denoiser = make(*detail)
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"model must return a Denoiser, but {spec} returned a {type(denoiser).__name__}"
        )
    return denoiser
