"""Look, then plan: phi decides after evaluations, not only before the first one. Beyond the paper.

The first evaluation is at T for every sample, so its answer is free information that the noise
alone does not show a small network; after every later one the state says more. With
``look="first"`` phi reads (x_T, D_0, c) once and plans; with ``look="every"`` it reads (x_k, D_k,
c) at every node k, plans all that remains from there, and takes the first step of that plan:

    x_k, answer_k -> (x_k, D_k) normalised -> trunk + condition + place -> logits of columns k ...
    N-1 -> step k

The next node is thus a share of what remains, monotone for any logits. The time shift of the first
node is all that cannot wait for an answer: it is learned, but shared. No evaluation is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from indis.denoise import Form, convert
from indis.noise import NoiseSchedule
from indis.numerics import broadcast
from indis.plan import Bounds, Decision, Discretization, Keep, Plan, restart
from indis.policies.base import discretize
from indis.policies.instance import Instance

Look = Literal["first", "every"]


def seen(x: Tensor, answer: Tensor, t: Tensor, schedule: NoiseSchedule, native: Form) -> Tensor:
    """``(batch, 2 channels, ...)``: the state at unit variance and the denoised sample, from an
    answer at it.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    state = x / broadcast((alpha**2 + sigma**2).sqrt(), x)
    data = convert(answer, native, Form.DATA, x=x, schedule=schedule, t=t)
    return torch.cat([state, data], dim=1)


class ClosedLoop(Instance):
    """A policy whose plan looks at states and answers in the denoiser's ``native`` form."""

    views = 2  # the trunk sees the state beside the denoised sample
    corrects: ClassVar[bool] = (
        False  # does it also read what comes after a plan, and add to what the steps head for?
    )

    def __init__(
        self,
        base: Tensor,
        schedule: NoiseSchedule,
        bounds: Bounds,
        *,
        native: Form,
        look: Look,
        **network: Any,
    ) -> None:
        super().__init__(base, schedule, bounds, **network)
        self.native, self.look = native, look
        # Which node this is, and how far along it lies.
        self.place = nn.Linear(self.steps + 1, self.width, bias=False) if look == "every" else None

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """A plan that is still open: it looks when the loop asks it to decide."""
        return Looking(self, features)

    def shared(self) -> Discretization:
        """The plan before anything was seen: what all samples have in common."""
        logits = self.head.bias.unflatten(0, (self.rows, self.steps))[None]
        return self.plan(logits)

    def rest(self, k: int, tau: Tensor, view: Tensor, features: Tensor | None) -> Discretization:
        """The plan of steps k ... N-1 from node ``tau`` ``(grid,)``, given what is :func:`seen`
        there.
        """
        place = self._place(k, tau, len(view)) if self.place is not None else None
        logits = self.read(view, features, place)
        base = restart(self.base, k, tau, self.schedule, self.bounds)
        return discretize((self.scale * logits)[:, :, k:], base, self.schedule, self.bounds)

    def describe(self) -> dict[str, Any]:
        """Also what it looks at and when."""
        return super().describe() | {"native": self.native.value, "look": self.look}

    @classmethod
    def _own(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return super()._own(config, tensors) | {
            "native": Form(config["native"]),
            "look": config["look"],
        }

    def _place(self, k: int, tau: Tensor, batch: int) -> Tensor:
        """``(batch, width)`` from the node's number and the share of the log-SNR (or time) axis
        behind it.
        """
        assert self.place is not None
        to = self.schedule.log_snr if self.bounds.domain == "log_snr" else torch.Tensor.double
        ends = to(self.base[:, [0, -1]])
        behind = (to(tau) - ends[:, 0]) / (ends[:, 1] - ends[:, 0])
        number = torch.zeros(batch, self.steps, dtype=behind.dtype, device=behind.device)
        number[:, k] = 1
        return self.place(
            torch.cat([number, behind.expand(batch)[:, None]], dim=1).to(self.place.weight)
        )


@dataclass
class Looking:
    """One run's plan: the latest :meth:`ClosedLoop.rest` and the node it began at."""

    policy: ClosedLoop
    features: Tensor | None
    plan: Discretization | None = None
    begun: int = 0
    to_zero = False
    needs_features = False

    @property
    def steps(self) -> int:
        """The policy's."""
        return self.policy.steps

    @property
    def keep(self) -> Keep:
        """The policy's."""
        return self.policy.bounds.keep

    def start(self) -> tuple[Tensor, Tensor]:
        """What all samples share, since nothing was seen yet."""
        self.plan, self.begun = None, 0
        return self.policy.shared().start()

    def decide(
        self, k: int, x: Tensor, answer: Tensor, features: Tensor | None = None
    ) -> Decision:
        """The first step of what is planned from here, or the next one of what was planned after
        the first look.
        """
        plans = self.plan is None or self.policy.look == "every"
        if plans or self.policy.corrects:
            tau = self.policy.base[:, 0] if self.plan is None else self.plan.tau[:, k - self.begun]
            view = seen(x, answer, tau, self.policy.schedule, self.policy.native)
        if plans:
            self.plan, self.begun = self.policy.rest(k, tau, view, self.features), k
        assert self.plan is not None
        decision = self.plan.decide(k - self.begun, x, answer)
        return (
            replace(decision, correction=self.correction(k, view))
            if self.policy.corrects
            else decision
        )

    def correction(self, k: int, view: Tensor) -> Tensor | None:
        """What step k adds to the denoised sample, given what is :func:`seen` at its start; of
        those that correct.
        """
        return None
