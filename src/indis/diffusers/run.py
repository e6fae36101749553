"""One call of a pipeline: a stepper, and the latents as the pipeline packs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indis.denoise import Condition, Wrapped
from indis.diffusers.process import Process
from indis.plan import Discretization
from indis.policies import Fixed, Policy
from indis.sampler import Sampler

Rearrange = Callable[[Tensor], Tensor]


def _same(latents: Tensor) -> Tensor:
    return latents


@dataclass(frozen=True)
class Layout:
    """How a pipeline packs its latents.

    Args:
        unpack: Returns latents as ``(batch, channels, ..., height, width)``.
        pack: Its inverse.
    """

    unpack: Rearrange = _same
    pack: Rearrange = _same


def known_plan(policy: Policy) -> Discretization | None:
    """Return the plan of a policy that makes it before it sees anything, None for another one."""
    policy = policy.frozen()
    reads = getattr(policy, "reads", "noise"), getattr(policy, "samples", 1)
    if isinstance(policy, Fixed) or reads == ("nothing", 1):
        return policy.shared_plan()
    return None


class Run:
    """A sampler inside one call of a pipeline.

    The state is kept in float32, whatever the dtype of the latents.

    Args:
        sampler: The sampler.
        process: The noise process of the pipeline.
        latents: The starting noise as the pipeline packs it, of unit variance.
        layout: How it does.
        features: Features of the condition ``(batch, dim)``, if the sampler reads them.
        name: The name of the pipeline, for errors.
    """

    def __init__(
        self,
        sampler: Sampler,
        process: Process,
        latents: Tensor,
        layout: Layout,
        features: Tensor | None = None,
        name: str = "pipeline",
    ) -> None:
        noise = layout.unpack(latents).to(torch.float32, copy=True)  # it is written to later
        self.process, self.layout = process.fitted(sampler.policy), layout
        schedule, native = self.process.schedule, self.process.native
        shape, device = tuple(noise.shape[1:]), noise.device
        network = Wrapped(_asked, schedule, shape, native, name=name, device=device)
        if features is not None:
            features = features.to(device, torch.float32)
        self.stepper = sampler.to(device).stepper(network, noise, Condition(features=features))
        self.batch, self._dtype = len(noise), latents.dtype

    @property
    def done(self) -> bool:
        """Whether the latents are the sample."""
        return self.stepper.done

    @property
    def timestep(self) -> Tensor:
        """The pipeline's times ``(batch,)`` of the next network call."""
        return (self.stepper.time * self.process.unit).float()

    @property
    def sigma(self) -> float:
        """The mean share of noise in [0, 1] at the next network call, a flow's time."""
        t, schedule = self.stepper.time.cpu(), self.process.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return float((sigma / (alpha + sigma)).mean())

    def latents(self) -> Tensor:
        """Return what the network must be shown next, or the sample, as the pipeline packs it."""
        x = self.stepper.x if self.done else self.stepper.input()
        return self.layout.pack(x).to(self._dtype, copy=True)

    def advance(self, output: Tensor, latents: Tensor) -> None:
        """Use an output of the network.

        Args:
            output: What it answered, guidance included, as the pipeline packs it.
            latents: What it was shown. If somebody changed them since :meth:`latents`, the run
                goes on from there.
        """
        if not torch.equal(latents, self.latents()):
            self.stepper.replace_input(self.layout.unpack(latents).float())
        answer = self.layout.unpack(output).float()
        x, t = self.stepper.input(), self.stepper.time
        self.stepper.advance(self.process.answer(answer, x, t))


def _asked(*_: object) -> Tensor:
    raise RuntimeError("the pipeline calls the network")
