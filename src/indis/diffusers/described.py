"""What artifacts record of a pipeline, and how another one differs from it."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from indis import artifact as artifacts
from indis.diffusers.record import network_of

FAR = 2.0  # times as many places as phi was fitted on


def described(pipe: Any) -> dict[str, Any]:
    """Return the class, origin, weight dtype and quantisation of a pipeline, as JSON."""
    network = network_of(pipe)
    quantised = getattr(network.config, "quantization_config", None)
    return {
        "pipeline": type(pipe).__name__,
        "base": pipe.config.get("_name_or_path"),
        "dtype": str(network.dtype).removeprefix("torch."),
        "quantisation": None if quantised is None else str(quantised),
    }


def encoders(pipe: Any) -> list[list[str]]:
    """Return the names and samples of the weights of a pipeline's text encoders."""
    parts = sorted(pipe.components.items())
    return [
        [name, sample_of_weights(part)]
        for name, part in parts
        if name.startswith("text_encoder") and part is not None
    ]


def sample_of_weights(network: torch.nn.Module) -> str:
    """Return a hash of all names and of some numbers of each weight: FLUX would take minutes."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().flatten()[:64].cpu().float().numpy().tobytes())
    return found.hexdigest()[:16]


def warn_of_others(pipe: Any, artifact: Any) -> None:
    """Warn where a pipeline is not the one that a named artifact was fitted on."""
    if isinstance(artifact, Mapping):
        for one in artifact.values():
            warn_of_others(pipe, one)
    elif isinstance(artifact, str | Path):
        made = artifacts.load_config(artifacts.find(artifact)).get("provenance")
        theirs = made.get("pipeline") if isinstance(made, dict) else None
        mine = described(pipe)
        if not isinstance(theirs, dict):  # fitted on no pipeline
            return
        for name, value in mine.items():
            there = theirs.get(name)
            same = Path(str(value)).name == Path(str(there)).name  # a base may have moved
            if not same:
                warnings.warn(
                    f"{artifact} was fitted on {name} {there}, got {value}: its times may not suit",
                    stacklevel=3,
                )


def warn_of_size(fitted: tuple[int, ...] | None, shape: tuple[int, ...]) -> None:
    """Warn if latents have far more or fewer places than those that a policy was fitted on."""
    if fitted is None or len(fitted) != len(shape):
        return
    ratio = math.prod(shape[1:]) / math.prod(fitted[1:])
    if not 1 / FAR <= ratio <= FAR:
        warnings.warn(
            f"the sampler was fitted on latents {fitted}, got {shape}: beyond twice the size it "
            "was not tried",
            stacklevel=3,
        )
