"""The model of a command, its device, and the checks that it suits endpoints and loss."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from indis import models
from indis.cli.console import default
from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss


@dataclass(frozen=True, kw_only=True)
class WithModel:
    """A command that loads a model.

    Raises:
        ValueError: If the device is unknown or absent.
    """

    device: Annotated[str | None, default("cuda if there is one, else cpu", "NAME")] = None
    """Where the model runs: cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        _ = self.place

    @property
    def place(self) -> torch.device:
        """The device."""
        return chosen_device(self.device)

    def load_model(self, spec: str) -> Denoiser:
        """Return the model that ``spec`` names, on the device.

        A module of the user's own is also looked for in the current folder.

        Raises:
            ValueError: If there is no such model.
        """
        if models.is_own(spec) and "" not in sys.path:
            sys.path.insert(0, "")
        return models.load(spec, self.place)

    def load_taught(
        self, meta: dict[str, Any], folder: Path | None, given: str | None = None
    ) -> Denoiser:
        """Return the model that endpoints were made with.

        Args:
            meta: The endpoints' metadata.
            folder: Their folder, for messages.
            given: The model that the user names. A function of the user's own is run only if it is
                named here: files must not decide what code runs.

        Raises:
            ValueError: If the endpoints name no model and none is given, or the model has other
                weights than it had then.
        """
        spec = given or taught_model(meta, folder)
        if given is None and models.is_own(spec):
            raise ValueError(
                f"the endpoints in {folder} were made with {spec}, which runs only where you name "
                f"it: add --model {spec}"
            )
        denoiser = self.load_model(spec)
        needed = meta["provenance"].get("weights", denoiser.fingerprint)
        if needed != denoiser.fingerprint:
            has = f"{denoiser.name} has {denoiser.fingerprint}"
            raise ValueError(
                f"the endpoints in {folder} were made with weights {needed}, {has}: make them again"
            )
        return denoiser


def chosen_device(name: str | None) -> torch.device:
    """Return the device of a name; by default CUDA if there is one, else the CPU.

    Raises:
        ValueError: If the library does not run on it, or it is absent.
    """
    count = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda" if count else "cpu")
    # Other devices, such as MPS, lack float64, in which times are kept.
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= count:
        raise ValueError(f"device {name} is absent: torch sees {count} CUDA devices here")
    return torch.device(name)


def check_loss(name: str, loss: Loss, denoiser: Denoiser, data: Endpoints) -> None:
    """Pass if a loss can judge what the model makes.

    Raises:
        ValueError: If not.
    """
    with torch.no_grad():
        one = denoiser.decode(to_device_of(data.target[:1], denoiser))
        try:
            to_device_of(loss, denoiser)(one, one)
        except ValueError as error:
            raise ValueError(f"loss must suit model {denoiser.name}, got {name}: {error}") from None


def taught_model(meta: dict[str, Any], folder: Path | None) -> str:
    """Return the name of the model that endpoints were made with.

    Raises:
        ValueError: If they do not say; those that a script wrote need not.
    """
    if "model" not in meta["provenance"]:
        raise ValueError(
            f"the endpoints in {folder} name no model in their provenance: name it with --model, "
            f"or make them with `indis teach`"
        )
    return meta["provenance"]["model"]


def describe_pipeline(denoiser: Denoiser) -> dict[str, Any]:
    """Return what provenance says of a pipeline and its prompts, nothing for another model."""
    if not hasattr(denoiser, "describe"):
        return {}
    return {"pipeline": denoiser.describe()}
