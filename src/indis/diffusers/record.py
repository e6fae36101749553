"""What a pipeline passes to its network, found by running it with a network that answers zero."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from indis.diffusers.families import Family
from indis.diffusers.watch import exchange, watch


@dataclass(frozen=True)
class Record:
    """One step of a pipeline.

    Args:
        calls: The arguments of each network call, by name.
        latents: The starting noise as the pipeline packs it.
        arrangement: The arguments of ``prepare_latents``.
        features: The features of the prompts ``(batch, dim)``, if there are any.
    """

    calls: tuple[Mapping[str, Any], ...]
    latents: Tensor
    arrangement: Mapping[str, Any]
    features: Tensor | None


def network_of(pipe: Any) -> Any:
    """Return the network of a pipeline."""
    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer


def record(pipe: Any, family: Family, prompts: Sequence[str], call: Mapping[str, Any]) -> Record:
    """Run a pipeline for one step without its network, which is by far the most of the work.

    Args:
        pipe: The pipeline.
        family: Its family.
        prompts: The prompts; for an unconditional pipeline only their number counts.
        call: Further arguments of its call.
    """
    network = network_of(pipe)
    calls: list[Mapping[str, Any]] = []
    seen: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    signature = inspect.signature(type(network).forward)

    def silent(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(network, *args, **kwargs).arguments
        given.pop("self")
        given |= given.pop("kwargs", {})
        calls.append(given)
        shown = next(iter(given.values()))
        zero = [torch.zeros_like(x) for x in shown] if isinstance(shown, list) else shown * 0
        return Transformer2DModelOutput(sample=zero)

    def keep(name: str, out: Any, given: Mapping[str, Any]) -> Any:
        seen.setdefault(name, (out, given))  # negative prompts come second
        return out

    with ExitStack() as stack:
        stack.callback(exchange(network, "forward", silent))
        for name in ("encode_prompt", "prepare_latents"):
            if hasattr(pipe, name):
                stack.callback(watch(pipe, name, partial(keep, name)))
        what = {"batch_size": len(prompts)} if family.late else {"prompt": list(prompts)}
        pipe(**what, **call, num_inference_steps=1, output_type="latent")
    if family.late:
        return Record(tuple(calls), next(iter(calls[0].values())), {}, None)
    latents, given = seen["prepare_latents"]
    latents = latents[0] if isinstance(latents, tuple) else latents
    features = family.features(pipe, *seen["encode_prompt"])
    return Record(tuple(calls), latents, given, features)
