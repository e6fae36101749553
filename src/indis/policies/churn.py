"""Churn: a plan that makes the state noisier between steps, with noise that belongs to the sample
(AdaSDE).

A stochastic step needs fresh noise, but a sample must depend neither on its batch nor on what was
drawn before it. So a sample's fresh noise is a function of its own *starting* noise: the SHA-256 of
that noise's bytes, in single precision, and of the step's number seeds a generator for each sample
and step. Equal seeds give equal samples, on every device and in every batch; other starting noise
gives noise that is unrelated to it, and so does the same noise rounded to half precision.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from indis.plan import Churn, Decision, Discretization, Keep


def fresh_noise(noise: Tensor, step: int) -> Tensor:
    """Unit noise for ``step``, of the shape, dtype and device of the starting ``noise`` ``(batch,
    *shape)``.
    """
    generator, drawn = torch.Generator(), []
    for row in noise.detach().cpu().float().contiguous():
        digest = hashlib.sha256(row.numpy().tobytes() + step.to_bytes(4)).digest()
        drawn.append(
            torch.randn(row.shape, generator=generator.manual_seed(int.from_bytes(digest[:8])))
        )
    return torch.stack(drawn).to(noise)


@dataclass(frozen=True)
class Churned:
    """An open-loop plan of steps of ``every`` sub-steps, each after the first begun at a noisier
    time.
    """

    plan: Discretization
    tau: Tensor  # (grid, N - 1), where the steps after the first start
    every: int
    noise: Tensor  # (batch, *shape), the starting noise

    @property
    def steps(self) -> int:
        """The number of sub-steps."""
        return self.plan.steps

    to_zero = False
    needs_features = False

    @property
    def keep(self) -> Keep:
        """As the plan."""
        return self.plan.keep

    def start(self) -> tuple[Tensor, Tensor]:
        """As the plan: the start of sampling is noise already."""
        return self.plan.start()

    def decide(
        self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None
    ) -> Decision:
        """As the plan, and after a whole step, unless it was the last, its churn."""
        decision = self.plan.decide(k, x, answer)
        step, rest = divmod(k + 1, self.every)
        if rest or k + 1 == self.steps:
            return decision
        return replace(
            decision, churn=Churn(self.tau[:, step - 1], fresh_noise(self.noise, step).to(x))
        )
