"""How strongly each logit of a plan moves end points: orders of magnitude apart, while one rate
must suit all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.policies import Global, LogitPolicy, PerSample
from indis.sampler import Sampler


def per_sample_gradients(
    sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, *, batch: int | None = None
) -> Tensor:
    """How each sample would move the logits of its own copy of the shared plan: gradients
    ``(len(data), rows, steps)``.

    The shared plan is that of a :class:`Global` policy, or the base grid that an untrained
    per-instance policy has. Gradients are of the logits that the bounds see, after any scale, and
    on the denoiser's device. With ``batch``, so many samples are worked on at once and network
    calls are recomputed backward: memory does not grow.

    Raises:
        TypeError: if the policy has no logits.
    """
    if batch is not None:
        parts = (data[i : i + batch] for i in range(0, len(data), batch))
        return torch.cat(
            [_own_gradients(sampler, denoiser, part, loss, checkpoint=True) for part in parts]
        )
    return _own_gradients(sampler, denoiser, data, loss, checkpoint=False)


def _own_gradients(
    sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, *, checkpoint: bool
) -> Tensor:
    policy = sampler.policy
    if not isinstance(policy, LogitPolicy):
        raise TypeError(f"policy must have logits, got {type(policy).__name__}")
    own = PerSample(len(data), policy.base, policy.schedule, policy.bounds, policy.order)
    if isinstance(policy, Global):
        own.free.data.copy_(policy.scale * policy.free)
    copies = to_device_of(Sampler(own, sampler.solver, sampler.analytic_first), denoiser)
    data, loss = to_device_of(data, denoiser), to_device_of(loss, denoiser)
    student = copies(denoiser, data.noise, data.condition, recompute=checkpoint)
    loss(denoiser.decode(student), denoiser.decode(data.target)).sum().backward(inputs=[own.free])
    assert own.free.grad is not None
    return own.free.grad


def sensitivity(
    sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, *, batch: int | None = None
) -> Tensor:
    """How strongly each logit of a plan moves a sample's loss, ``(1, rows, steps)``: root mean
    square over samples.

    It is measured at each sample's own copy of the logits (:func:`per_sample_gradients`), so that
    gradients of opposite signs do not cancel. Logits that do nothing have zero. ``batch`` is that
    of :func:`per_sample_gradients`.

    Raises:
        TypeError: if the policy has no logits.
    """
    return (
        per_sample_gradients(sampler, denoiser, data, loss, batch=batch)
        .square()
        .mean(0, keepdim=True)
        .sqrt()
    )


def balancing_scale(rms: Tensor) -> Tensor:
    """Factors that make all logits about as sensitive as the least sensitive ones; at most 1, and 1
    for idle logits.

    With Adam, whose steps have the size of the rate whatever the gradient, this is a diagonal
    preconditioner.
    """
    active = rms[rms > 0]
    if not active.numel():
        return torch.ones_like(rms)
    return (active.quantile(0.1) / rms.clamp_min(active.min())).clamp(max=1.0)
