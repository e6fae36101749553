"""How strongly each logit of a plan moves end points: orders of magnitude apart, while one learning
rate must suit all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.policies import LearnedPolicy
from indis.sampler import Sampler


def per_sample_gradients(
    sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, *, batch: int | None = None
) -> Tensor:
    """Return the gradient of each sample's loss in the logits of its own copy of the shared plan.

    Args:
        sampler: with a :class:`~indis.policies.LearnedPolicy`, whose table is the shared plan.
        denoiser: whose device is worked on.
        data: end points.
        loss: of a batch, one number a sample.
        batch: work on so many samples at once and recompute network calls in the backward pass, so
            that memory does not grow; None for all at once.

    Returns:
        ``(len(data), rows, steps)``, in the logits that the bounds see, after any scale.

    Raises:
        TypeError: if the policy has no logits.
    """
    policy = sampler.policy
    if not isinstance(policy, LearnedPolicy):
        raise TypeError(f"policy must have logits, got {type(policy).__name__}")
    loss = to_device_of(loss, denoiser)
    found: list[Tensor] = []
    for start in range(0, len(data), batch or len(data)):
        part = to_device_of(data[start : start + (batch or len(data))], denoiser)
        own = policy.for_samples(len(part))
        copies = to_device_of(Sampler(own, sampler.solver, sampler.analytic_first), denoiser)
        student = copies(denoiser, part.noise, part.condition, recompute=batch is not None)
        table = own.logits.table
        total = loss(denoiser.decode(student), denoiser.decode(part.target)).sum()
        found += torch.autograd.grad(total, table)
    return torch.cat(found)


def sensitivity(
    sampler: Sampler, denoiser: Denoiser, data: Endpoints, loss: Loss, *, batch: int | None = None
) -> Tensor:
    """Return how strongly each logit moves a sample's loss: the root mean square over samples of
    :func:`per_sample_gradients`, so that gradients of opposite signs do not cancel.

    Returns:
        ``(1, rows, steps)``; zero for logits that do nothing.

    Raises:
        TypeError: if the policy has no logits.
    """
    gradients = per_sample_gradients(sampler, denoiser, data, loss, batch=batch)
    return gradients.square().mean(0, keepdim=True).sqrt()


def balancing_scale(rms: Tensor) -> Tensor:
    """Return factors that make all logits about as sensitive as the least sensitive ones.

    With Adam, whose steps have the size of the rate whatever the gradient, they are a diagonal
    preconditioner. They are at most 1, and 1 for logits that do nothing.
    """
    active = rms[rms > 0]
    if not active.numel():
        return torch.ones_like(rms)
    return (active.quantile(0.1) / rms.clamp_min(active.min())).clamp(max=1.0)
