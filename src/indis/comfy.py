"""A sampler inside ComfyUI, without importing ComfyUI: what its nodes are made of.

ComfyUI asks its models in the space of x / alpha at sigma / alpha, flows as they are, and they
answer with denoised samples, guidance included. So times of a batch may differ, and the nodes see
noise and conditioning. The nodes themselves are in the folder ``indis-comfyui``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indis.denoise import Condition, Form, Wrapped, convert
from indis.export import lost_in_sigmas, sigmas
from indis.noise import EDM, NoiseSchedule, RectifiedFlow, TableVP, same_levels
from indis.numerics import TIME_DTYPE, broadcast
from indis.plan import Discretization
from indis.sampler import Sampler

Guider = Callable[..., Tensor]
Callback = Callable[[int, Tensor, Tensor, int], None]


@dataclass(frozen=True)
class Process:
    """What ComfyUI's ``model_sampling`` says of a model.

    Args:
        schedule: The noise schedule.
        native: The form of the network's answers, which gamma multiplies.
    """

    schedule: NoiseSchedule
    native: Form


def process_of(model_sampling: Any, sampler: Sampler) -> Process:
    """Return the noise process of a model, with the times that a sampler was fitted for.

    Args:
        model_sampling: ComfyUI's object of that name.
        sampler: The sampler.

    Raises:
        ValueError: If the sampler was fitted on another noise process.
    """
    names = {kind.__name__ for kind in type(model_sampling).__mro__}
    own: NoiseSchedule
    if "CONST" in names:
        own, native = RectifiedFlow(), Form.VELOCITY
    elif "EDM" in names or "ModelSamplingContinuousEDM" in names:
        own, native = EDM(), Form.NOISE
    else:
        table = model_sampling.sigmas.to("cpu", TIME_DTYPE)
        own = TableVP(1 / (1 + table**2), prior="unit")
        native = Form.VELOCITY if "V_PREDICTION" in names else Form.NOISE
    if "X0" in names:
        native = Form.DATA
    theirs = getattr(sampler.policy, "schedule", None)
    if theirs is None:
        return Process(own, native)
    if not same_levels(own, theirs):
        raise ValueError(f"model must have the noise schedule of the sampler, {theirs}, got {own}")
    return Process(theirs, native)


def run(
    sampler: Sampler,
    guider: Guider,
    process: Process,
    noise: Tensor,
    features: Tensor | None = None,
    callback: Callback | None = None,
    **extra: Any,
) -> Tensor:
    """Draw samples by a guider of ComfyUI, each at times of its own.

    Args:
        sampler: The sampler.
        guider: Maps ``(x, sigma (batch,), **extra)`` to denoised samples.
        process: Of :func:`process_of`.
        noise: Unit noise ``(batch, *shape)``.
        features: Of the conditioning, ``(batch, dim)``.
        callback: Gets (call, denoised, x, calls) after each network call.
        extra: What ComfyUI passes on to its models.

    Returns:
        Samples ``(batch, *shape)`` in ComfyUI's space, that is, over alpha at the last time.
    """
    schedule, native = process.schedule, process.native
    stepper = sampler.to(noise.device).stepper(_network(process, noise), noise, _of(features))
    calls = 0
    while not stepper.done:
        x, t = stepper.input(), stepper.time
        alpha = schedule.alpha(t)
        flow = isinstance(schedule, RectifiedFlow)
        level, shown = (t, x) if flow else (schedule.sigma(t) / alpha, x / broadcast(alpha, x))
        denoised = guider(shown, level.to(x), **extra)
        stepper.advance(
            convert(denoised, Form.DATA, native, x=x, schedule=schedule, t=t).to(x.dtype)
        )
        if callback is not None:
            callback(calls, denoised, shown, sampler.nfe)
        calls += 1
    end = schedule.alpha(stepper.tau)
    return stepper.x / broadcast(end, stepper.x).to(stepper.x)


def list_of_sigmas(
    sampler: Sampler, process: Process, noise: Tensor, features: Tensor | None = None
) -> tuple[Tensor, list[str]]:
    """Return ComfyUI's sigmas ``(steps + 1,)`` of one sample, and what they drop.

    Raises:
        ValueError: If there are several samples, or the plan needs the network's answers.
    """
    if len(noise) != 1:
        raise ValueError(f"latent must be a batch of 1 for one list of sigmas, got {len(noise)}")
    sampler.policy.check(_network(process, noise))
    with torch.no_grad():
        plan = sampler.policy(noise, features)
    if not isinstance(plan, Discretization):
        raise ValueError("indis must plan from the noise for a list: this one reads the answers")
    shared = getattr(sampler.policy, "reads", "nothing") == "nothing"
    lost = lost_in_sigmas(plan, shared=shared, analytic_first=sampler.analytic_first)
    return sigmas(process.schedule, plan)[0].float(), lost


def features_of(sampler: Sampler, conditioning: Sequence[Mapping[str, Any]], batch: int) -> Any:
    """Return features ``(batch, dim)`` of a conditioning, None if the sampler reads none.

    They are the mean over the tokens, the mean beside the pooled vector, or the pooled vector,
    whichever has the length that the sampler was fitted with.

    Args:
        sampler: The sampler.
        conditioning: One prompt, as ``{"tokens": (rows, tokens, dim), "mask": None or (rows,
            tokens), "pooled": None or (rows, dim)}``; the rows are 1 or the batch.
        batch: The number of samples.

    Raises:
        ValueError: If there is not one prompt, or no length fits.
    """
    wanted = getattr(sampler.policy, "condition_dim", 0)
    if not wanted:
        return None
    if len(conditioning) != 1:
        raise ValueError(
            f"conditioning must be one prompt for this sampler, got {len(conditioning)}"
        )
    tokens, mask, pooled = (conditioning[0].get(name) for name in ("tokens", "mask", "pooled"))
    parts: list[Tensor] = []
    if tokens is not None:
        if mask is None:
            warnings.warn("conditioning has no mask: padding counts in its mean", stacklevel=2)
            mask = torch.ones(tokens.shape[:2])
        weights = mask.to(tokens.device, torch.float32)[..., None]
        parts.append((tokens.float() * weights).sum(1) / weights.sum(1).clamp_min(1))
    if pooled is not None:
        pooled = pooled.float()
        parts += [torch.cat([mean, pooled.to(mean.device)], dim=1) for mean in parts]
        parts.append(pooled)
    for part in parts:
        if part.shape[1] == wanted:
            return part.expand(batch, wanted) if len(part) == 1 else part
    lengths = ", ".join(str(part.shape[1]) for part in parts) or "none"
    raise ValueError(f"conditioning must have {wanted} features for this sampler, got {lengths}")


def _of(features: Tensor | None) -> Condition:
    return Condition(features=features)


def _network(process: Process, noise: Tensor) -> Wrapped:
    shape, device = tuple(noise.shape[1:]), noise.device
    return Wrapped(_asked, process.schedule, shape, process.native, name="ComfyUI", device=device)


def _asked(*_: object) -> Tensor:
    raise RuntimeError("ComfyUI calls the network")
