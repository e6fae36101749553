"""The learned policy: what it reads, what it moves, and for which numbers of steps.

=================  ==============================================================================
choice             values
=================  ==============================================================================
``reads``          "nothing": one plan for all samples. "noise": the starting noise and the
                   condition, phi(x_T, c) of the paper. "answers": states and answers on the way
                   (:mod:`indis.policies.closed`)
what it moves      the times; shifts, scales and multistep weights whose bound is not zero; with a
                   :class:`~indis.policies.spatial.SpatialCorrector` the picture
numbers of steps   one, or several that share one encoder (not with "answers")
=================  ==============================================================================

    sample, condition -> encoder -> h -> head of N, around the table of N -> (3 + order) x N logits

The table is what all samples share; head and corrector begin at zero, so an untrained policy is its
base solver bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indis.checks import require_choice
from indis.denoise import Denoiser, Form
from indis.logits import LOGIT_ROWS, Bounds, coordinate, from_logits, restart
from indis.noise import SCHEDULES, NoiseSchedule
from indis.plan import Discretization, Plan
from indis.policies.base import Policy, shared_grid
from indis.policies.closed import ClosedLoop
from indis.policies.encoders import Encoder, check_shape
from indis.policies.spatial import Picture, SpatialCorrector
from indis.storage import describe, exactly, from_fields, rebuild

NETWORK = ("shape", "condition_dim", "width", "depth")

Reads = Literal["nothing", "noise", "answers"]
Replan = Literal["first", "every"]


class StepLogits(nn.Module):
    """The logits of plans of N steps.

    ``scale`` ``(1, rows, N)`` multiplies them: samples are orders of magnitude more sensitive to
    some logits than to others, and one learning rate must suit all (:mod:`indis.sensitivity`).

    Args:
        base: grid ``(1, N + 1)`` that the logits move.
        rows: number of logits a step.
        samples: number of samples that have a row of their own in the table; 1 to share it.
        width: of what the head reads; 0 for none.
        position: whether plans are made at several nodes, whose place must be known.
    """

    base: Tensor
    scale: Tensor

    def __init__(self, base: Tensor, rows: int, samples: int, width: int, position: bool) -> None:
        super().__init__()
        self.register_buffer("base", shared_grid(base))
        steps = base.shape[1] - 1
        self.register_buffer("scale", torch.ones(1, rows, steps))
        self.table = nn.Parameter(torch.zeros(samples, rows, steps))
        self.head = nn.Parameter(torch.zeros(rows * steps, width)) if width else None
        self.position = nn.Linear(steps + 1, width, bias=False) if position else None

    def forward(self, hidden: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return logits ``(grid, rows, N)``: of what was read, else of the table's rows."""
        if hidden is None or self.head is None:
            return self.scale * (self.table if index is None else self.table[index])
        raw = F.linear(hidden, self.head, self.table.flatten())
        return self.scale * raw.unflatten(1, self.table.shape[1:])


class LearnedPolicy(Policy):
    """A policy that moves a plan around a base grid, within bounds.

    Args:
        bases: the base grid ``(1, N + 1)``, or several of different N.
        schedule: noise schedule of the denoiser.
        bounds: how far a plan may move; a bound of zero removes what it bounds.
        order: how many multistep weights a step corrects if their bound is positive.
        reads: what a plan is made from.
        samples: number of samples of one data set, each with a plan of its own that no other can
            have (the oracle of the paper's Fig. 2c); only for a policy that reads nothing.
        shape: of a sample; for a policy that reads.
        condition_dim: number of condition features it reads besides; 0 for none.
        width: of the hidden layers.
        depth: number of hidden layers, for vectors.
        native: form of the denoiser's answers, for a policy that reads them.
        replan: whether a policy that reads answers plans once, after the "first" one, or anew at
            "every" node.
        picture: kind of the corrections of each place, None for none; needs "answers".
        picture_width: channels of the network that corrects places.
        to_zero: whether the last step goes to zero noise.

    Raises:
        ValueError: if the choices do not fit together.
    """

    def __init__(
        self,
        bases: Tensor | Sequence[Tensor],
        schedule: NoiseSchedule,
        bounds: Bounds,
        *,
        order: int = 0,
        reads: Reads = "nothing",
        samples: int = 1,
        shape: tuple[int, ...] | None = None,
        condition_dim: int = 0,
        width: int = 128,
        depth: int = 3,
        native: Form | None = None,
        replan: Replan = "every",
        picture: Picture | None = None,
        picture_width: int = 24,
        to_zero: bool = False,
    ) -> None:
        super().__init__()
        bases = [bases] if isinstance(bases, Tensor) else list(bases)
        require_choice("reads", reads, Reads)
        require_choice("replan", replan, Replan)
        if (shape is None) is not (reads == "nothing"):
            raise ValueError(f"shape must be given to a policy that reads, got {shape} for {reads}")
        if (native is None) is (reads == "answers"):
            raise ValueError(
                f"native must be given to read answers alone, got {native} for {reads}"
            )
        if samples > 1 and reads != "nothing":
            raise ValueError(f"samples must be 1 for a policy that reads {reads}, got {samples}")
        if picture is not None:
            require_choice("picture", picture, Picture)
            if reads != "answers":
                raise ValueError(f"picture must be left out without answers, got {picture!r}")
        self.schedule, self.bounds, self.native, self.to_zero = schedule, bounds, native, to_zero
        self.reads, self.replan, self.samples = reads, replan, samples
        self.order = order if bounds.weights > 0 else 0
        self.rows = LOGIT_ROWS + self.order
        self.shape = None if shape is None else tuple(shape)
        self.condition_dim, self.width, self.depth = condition_dim, width, depth
        self.encoder: Encoder | None = None
        self.corrector: SpatialCorrector | None = None
        if self.shape is not None:
            views = 2 if reads == "answers" else 1  # the state beside the denoised sample
            read = (views * self.shape[0], *self.shape[1:])
            self.encoder = Encoder(read, condition_dim, width, depth)
        plain, often = reads == "nothing", reads == "answers" and replan == "every"
        made = [StepLogits(b, self.rows, samples, 0 if plain else width, often) for b in bases]
        numbers = [int(one.table.shape[2]) for one in made]
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(f"bases must be grids of different numbers of steps, got {numbers}")
        if len(numbers) > 1 and reads == "answers":
            raise ValueError(
                f"bases must be one grid for a policy that reads answers, got {numbers}"
            )
        self.by_steps = nn.ModuleDict(dict(zip(map(str, numbers), made, strict=True)))
        self.steps = max(numbers)
        if picture is not None and self.shape is not None:
            self.corrector = SpatialCorrector(
                self.shape, self.steps, condition_dim, picture, picture_width
            )
        self.picture_width = picture_width

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of steps that it plans."""
        return tuple(map(int, self.by_steps))

    @property
    def logits(self) -> StepLogits:
        """The logits of plans of :attr:`steps` steps."""
        own = self.by_steps[str(self.steps)]
        assert isinstance(own, StepLogits)
        return own

    @property
    def base(self) -> Tensor:
        """The base grid ``(1, steps + 1)``."""
        return self.logits.base

    @property
    def moves(self) -> tuple[str, ...]:
        """What a plan may choose: tau, and what has a bound above zero."""
        bounds = {name: getattr(self.bounds, name) for name in ("dtau", "gamma")}
        bounds |= {"weights": self.order, "picture": self.corrector}
        return ("tau", *(name for name, size in bounds.items() if size))

    def at(self, steps: int) -> Self:
        """Return this policy for ``steps`` steps: a view that shares its parameters.

        Raises:
            ValueError: if it was not made for that number.
        """
        if steps not in self.counts:
            known = ", ".join(map(str, self.counts))
            one_of = "one of " if len(self.counts) > 1 else ""
            raise ValueError(f"steps must be {one_of}{known}, got {steps}")
        view = copy.copy(self)
        view.steps = steps
        return view

    def forward(
        self, noise: Tensor, features: Tensor | None = None, index: Tensor | None = None
    ) -> Plan:
        """Return the plan of a batch; one that reads answers is made on the way.

        Raises:
            ValueError: if each of several samples has a plan, and nothing says whose are asked for.
        """
        if self.reads == "answers":
            remaining, correct = partial(self.remaining, features=features), None
            if self.corrector is not None:
                correct = partial(self.corrector, features=features)
            assert self.native is not None
            every = self.replan == "every"
            shared = self.shared_plan()
            return ClosedLoop(shared, remaining, every, self.schedule, self.native, correct)
        if self.encoder is not None:
            return self.plan(self.logits(self.encoder(noise, features)))
        if self.samples > 1 and index is None and len(noise) != self.samples:
            raise ValueError(
                f"index must be given for a policy of {self.samples} samples, each with its own "
                f"plan, got {len(noise)} samples without"
            )
        return self.plan(self.logits(index=index if self.samples > 1 else None))

    def plan(self, logits: Tensor) -> Discretization:
        """Return the plan of scaled logits ``(grid, rows, steps)``."""
        return from_logits(logits, self.base, self.schedule, self.bounds, to_zero=self.to_zero)

    def shared_plan(self) -> Discretization:
        """Return the plan of the table: that of all samples, or what theirs are refined from."""
        if self.samples > 1:
            raise TypeError(f"policy has {self.samples} plans, none that all samples share")
        return self.plan(self.logits())

    def remaining(
        self, k: int, tau: Tensor, observed: Tensor, features: Tensor | None
    ) -> Discretization:
        """Return the plan of steps k ... N-1.

        Args:
            k: number of the node.
            tau: where it lies, ``(grid,)``.
            observed: the :func:`~indis.policies.closed.observation` there.
            features: of the condition, ``(batch, condition_dim)``.
        """
        assert self.encoder is not None
        position = self._position(k, tau, len(observed))
        logits = self.logits(self.encoder(observed, features, position))[:, :, k:]
        base = restart(self.base, k, tau, self.schedule, self.bounds, to_zero=self.to_zero)
        return from_logits(logits, base, self.schedule, self.bounds, to_zero=self.to_zero)

    def _position(self, k: int, tau: Tensor, batch: int) -> Tensor | None:
        """Embed the node's number and the share of the log-SNR (or time) axis behind it."""
        layer = self.logits.position
        if layer is None:
            return None
        to, _ = coordinate(self.schedule, self.bounds.domain)
        start, end = to(self.base[:, 0]), to(self.base[:, -1])
        behind = (to(tau) - start) / (end - start)
        number = F.one_hot(torch.full((batch,), k, device=tau.device), self.steps)
        place = torch.cat([number.to(behind.dtype), behind.expand(batch)[:, None]], dim=1)
        embedded: Tensor = layer(place.to(layer.weight))
        return embedded

    def start_at(self, shared: LearnedPolicy) -> None:
        """Begin at a fitted shared plan, so that the network learns what a sample adds to it.

        Raises:
            ValueError: if the plan has another base grid, other bounds or other rows.
        """
        same = shared.bounds == self.bounds and shared.rows == self.rows
        if not same or not torch.equal(shared.base, self.base):
            raise ValueError(
                "start must be a shared plan on the same base grid, with the same bounds and "
                "freedoms"
            )
        self.logits.scale.copy_(shared.logits.scale)
        self.logits.table.data.copy_(shared.logits.table.detach())

    def for_samples(self, samples: int) -> LearnedPolicy:
        """Return a policy with a plan of its own for each of ``samples``, begun at the shared one.

        Its logits are what bounds see: the scale is one.
        """
        own = LearnedPolicy(
            self.base,
            self.schedule,
            self.bounds,
            order=self.order,
            samples=samples,
            to_zero=self.to_zero,
        )
        own.to(self.logits.table.device)
        own.logits.table.data.copy_(self.logits().detach())
        return own

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser on which this policy would give wrong samples."""
        super().check(denoiser)
        if self.shape is not None:
            check_shape(self.shape, tuple(denoiser.shape))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the tables, the networks that refine them, and the corrector of pictures."""
        tables = [own.get_parameter("table") for own in self.by_steps.values()]
        picture = [] if self.corrector is None else list(self.corrector.parameters())
        known = {id(p) for p in [*tables, *picture]}
        network = [p for p in self.parameters() if id(p) not in known]
        return {"plan": tables, "network": network, "picture": picture}

    def parameter_count(self) -> int:
        """Return how many learned numbers have an effect: rows whose bound is zero have none."""
        idle = sum(not size for size in (self.bounds.dtau, self.bounds.gamma))
        a_logit = self.samples + (self.width if self.encoder is not None else 0)
        return super().parameter_count() - idle * a_logit * sum(self.counts)

    def describe(self) -> dict[str, Any]:
        """Return all arguments but the base grids, which are part of the state."""
        network = {name: getattr(self, name) for name in NETWORK}
        corrector = self.corrector
        picture = corrector and {"kind": corrector.kind, "width": self.picture_width}
        return {
            "schedule": describe(self.schedule),
            "bounds": asdict(self.bounds),
            "order": self.order,
            "counts": list(self.counts),
            "steps": self.steps,
            "samples": self.samples,
            "to_zero": self.to_zero,
            "reads": self.reads,
            "network": None if self.encoder is None else network,
            "native": None if self.native is None else self.native.value,
            "replan": self.replan,
            "picture": picture,
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the policy of this description and state."""
        network, native, picture = (config[name] for name in ("network", "native", "picture"))
        parts: dict[str, Any] = {name: config[name] for name in ("order", "samples", "to_zero")}
        parts |= {"reads": config["reads"], "replan": config["replan"]}
        if network is not None:
            parts |= exactly(network, NETWORK) | {"shape": tuple(network["shape"])}
        if native is not None:
            parts["native"] = Form(native)
        if picture is not None:
            parts |= {"picture": picture["kind"], "picture_width": picture["width"]}
        bases = [tensors[f"by_steps.{steps}.base"] for steps in config["counts"]]
        schedule = rebuild(config["schedule"], SCHEDULES)
        policy = cls(bases, schedule, from_fields(Bounds, config["bounds"]), **parts)
        policy.load_state_dict(dict(tensors))
        return policy.at(config["steps"])
