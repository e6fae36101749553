"""Model families: one module each, found by looking into this folder.

A family is a module with ``DESCRIPTION`` (a line of help), ``load(detail)`` that returns a frozen
denoiser, and ``name_of(detail)`` that returns this denoiser's name without loading it. It may bring
``LOSSES``: names and functions from a folder of feature weights, or None, to a loss. Heavy packages
are imported inside its functions, so that families can be listed.

``models.load("fashion")`` imports only that family. ``models.load("package.module:function")``
calls a function of the user's own.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from indis import losses
from indis.denoise import Denoiser
from indis.losses import Loss

OWN = "module:function"


def families() -> dict[str, str]:
    """Return the names of the shipped families, each with a line of description."""
    return {name: module.DESCRIPTION for name, module in _families().items()}


def load(spec: str, device: torch.device | str = "cpu") -> Denoiser:
    """Return the denoiser that ``spec`` names, on a device.

    Args:
        spec: ``family`` or ``family:detail`` for a shipped family (:func:`families`), or
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
    if (module := _family(family)) is None:
        raise ValueError(f"model must be {_known()}, got {spec!r}")
    return (module.load(detail) if detail else module.load()).to(device)


def is_own(spec: str) -> bool:
    """Return whether a spec names a function rather than a shipped family."""
    family, colon, _ = spec.partition(":")
    return bool(colon) and _family(family) is None


def name_of(spec: str) -> str | None:
    """Return the name of a shipped family's denoiser without loading it; None for other models.

    Other weights of a family have the same name. What is no spec is taken for a name already.
    """
    if is_own(spec):
        return None
    family, _, detail = spec.partition(":")
    module = _family(family)
    return family if module is None else module.name_of(detail)


def loss_names() -> tuple[str, ...]:
    """Return the names that :func:`loss` knows: the generic losses and those of the families."""
    return (*losses.LOSSES, *(name for m in _families().values() for name in _losses(m)))


def loss(name: str, features: Path | None = None) -> Loss:
    """Return the loss of a name, generic or of a model family.

    Args:
        name: one of :func:`loss_names`.
        features: a folder with another feature network than the one that ships, for the losses of a
            family.

    Raises:
        ValueError: if there is no such loss, or it has no feature network to replace.
        FileNotFoundError: if the folder holds none.
    """
    if name not in losses.LOSSES or features is not None:
        own = {key: make for m in _families().values() for key, make in _losses(m).items()}
        if name in own:
            return own[name](features)
        if name in losses.LOSSES:
            raise ValueError(
                f"loss must have a feature network, as fashion has, to choose one, got {name!r}"
            )
        raise ValueError(f"loss must be one of {', '.join(loss_names())}, got {name!r}")
    return losses.named(name)


def _families() -> dict[str, ModuleType]:
    names = (info.name for info in pkgutil.iter_modules(__path__))
    return {name: module for name in names if (module := _family(name)) is not None}


def _family(name: str) -> ModuleType | None:
    """The module of a family, None if there is none of this name."""
    if not name.isidentifier() or name not in {m.name for m in pkgutil.iter_modules(__path__)}:
        return None
    module = import_module(f"{__name__}.{name}")
    return module if hasattr(module, "DESCRIPTION") else None


def _losses(family: ModuleType) -> dict[str, Callable[[Path | None], Loss]]:
    found: dict[str, Callable[[Path | None], Loss]] = getattr(family, "LOSSES", {})
    return found


def _known() -> str:
    return f"one of {', '.join(families())} or {OWN}"


def _call(spec: str) -> Denoiser:
    """Call the function that a spec names."""
    name, function, *detail = spec.split(":", 2)
    try:
        module = import_module(name)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else name
        raise ValueError(
            f"model must be {_known()}, got {spec!r}: there is no module {missing!r}"
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
