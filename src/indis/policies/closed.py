"""Closed loops: plans that are made after evaluations, not only before the first one. Beyond the
paper.

The first evaluation is at the same time for every sample, so its answer is free information that
the noise alone does not show a small network; after every later one the state says more. A plan
that is made at node k covers steps k ... N-1, and its first step is taken:

    x_k, answer_k -> (x_k, D_k) normalised -> encoder -> logits of columns k ... N-1 -> step k

A node is a share of what remains, so times decrease for any logits. Only the shift of the first
node cannot wait for an answer: it is learned, but shared. No evaluation is added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from indis.denoise import Form, convert
from indis.noise import NoiseSchedule
from indis.numerics import broadcast
from indis.plan import Decision, Discretization, Keep
from indis.policies.spatial import PAST

Remaining = Callable[[int, Tensor, Tensor], Discretization]
Correct = Callable[[int, Tensor, list[Tensor]], Tensor | None]


def observation(
    x: Tensor, answer: Tensor, t: Tensor, schedule: NoiseSchedule, native: Form
) -> Tensor:
    """Return the state at unit variance beside the denoised sample, ``(batch, 2 channels, ...)``.

    Args:
        x: state ``(batch, channels, ...)``.
        answer: the denoiser's answer to it.
        t: time of the state, ``(grid,)``.
        schedule: noise schedule of the denoiser.
        native: form of its answers.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    state = x / broadcast((alpha**2 + sigma**2).sqrt(), x)
    data = convert(answer, native, Form.DATA, x=x, schedule=schedule, t=t)
    return torch.cat([state, data], dim=1)


@dataclass
class ClosedLoop:
    """The plan of one run, made from what is observed on the way.

    Args:
        shared: the plan before anything is known.
        remaining: returns the plan of steps k ... N-1 from (k, times of node k ``(grid,)``, the
            :func:`observation` there).
        every: whether it is made anew at every node, or once after the first answer.
        schedule: of the denoiser.
        native: form of the denoiser's answers.
        correct: returns what to add to the denoised sample of step k from (k, the state at unit
            variance, the denoised samples so far, newest first).
    """

    shared: Discretization
    remaining: Remaining
    every: bool
    schedule: NoiseSchedule
    native: Form
    correct: Correct | None = None
    plan: Discretization | None = None
    begun: int = 0  # the node that ``plan`` was made at
    data: list[Tensor] = field(default_factory=list)
    needs_features: bool = False

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.shared.steps

    @property
    def keep(self) -> Keep:
        """What a time shift leaves as it is."""
        return self.shared.keep

    @property
    def to_zero(self) -> bool:
        """Whether the last step goes to zero noise."""
        return self.shared.to_zero

    def start(self) -> tuple[Tensor, Tensor]:
        """Begin a run: return the first node and its shift, which all samples share."""
        self.plan, self.begun, self.data = None, 0, []
        return self.shared.start()

    def decide(self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None) -> Decision:
        """Return step k, of a plan that is made now or was made before."""
        tau = self.shared.tau[:, 0] if self.plan is None else self.plan.tau[:, k - self.begun]
        plans = self.plan is None or self.every
        seen = None
        if plans or self.correct is not None:
            seen = observation(x, answer, tau, self.schedule, self.native)
        if plans and seen is not None:
            self.plan, self.begun = self.remaining(k, tau, seen), k
        assert self.plan is not None
        decision = self.plan.decide(k - self.begun, x, answer)
        if self.correct is None or seen is None:
            return decision
        state, data = seen.chunk(2, dim=1)
        self.data = [data, *self.data[:PAST]]
        return replace(decision, correction=self.correct(k, state, self.data))
