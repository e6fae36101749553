"""The recipe of a fit, and the one training loop that follows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from indis.checks import require_least
from indis.endpoints import Endpoints
from indis.policies import Policy


@dataclass(frozen=True)
class Recipe:
    """How a policy is fitted: Adam on the mean loss of a batch, with a learning rate that rises in
    a straight line and then falls along a cosine to zero, and with clipped gradients.

    Networks learn at a fraction of the rate of the plan that they refine, since a logit sums over
    the whole width of them, and wait until it has settled. What is kept is the state with the best
    loss on held-out end points. Adam and cosine are the paper's; the numbers are ours.
    """

    iterations: int = 500
    """Number of the optimizer's steps."""
    batch: int = 64
    """Number of endpoints in an iteration."""
    lr: float | None = None
    """Learning rate of a plan's numbers. None is 0.3, or 0.1 if a plan moves its times alone."""
    warmup: float = 0.1
    """Part of the iterations in which the learning rate rises."""
    clip: float = 1.0
    """Largest norm of the gradient, which is scaled down to it."""
    relative: bool = False
    """Divide a batch's loss by its own value, for losses with heavy tails."""
    network_rate: float | None = None
    """Rate of networks as a part of lr. None is 0.03 for vectors, 0.007 for pictures."""
    picture_rate: float = 0.02
    """Rate of a corrector of pictures as a part of lr."""
    settle: float = 0.2
    """Part of the iterations in which networks wait for the plan that they refine."""
    probes: int = 64
    """Endpoints that measure how sensitive each logit is; 0 gives all logits one rate."""
    holdout: int = 500
    """Number of endpoints, the last ones, that only choose the best state; 0 keeps the last."""
    validate_every: int = 50
    """Number of iterations between two held-out losses."""
    recompute: bool = False
    """Recompute network calls in the backward pass, for scarce memory."""
    seed: int = 0
    """Seed of the initial weights and the batches."""

    def __post_init__(self) -> None:
        least = {"iterations": 1, "batch": 1, "probes": 0, "holdout": 0, "seed": 0}
        require_least(self, **least, validate_every=1)
        for name in ("warmup", "settle"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("lr", "clip", "network_rate", "picture_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")

    @property
    def scarce(self) -> int | None:
        """How many samples may be worked on at once if memory is scarce, else None."""
        return self.batch if self.recompute else None

    def split(self, data: Endpoints) -> tuple[Endpoints, Endpoints]:
        """Return the end points to train on and the held-out ones.

        Raises:
            ValueError: if nothing is left to train on.
        """
        if len(data) <= self.holdout:
            raise ValueError(
                f"holdout must be below the number of endpoints, got {self.holdout} of {len(data)}"
            )
        split = len(data) - self.holdout
        return data[:split], data[split:]

    def rate(self, policy: Policy) -> float:
        """Return the learning rate of a plan's numbers."""
        alone = getattr(policy, "moves", None) == ("tau",)
        return self.lr or (0.1 if alone else 0.3)

    def optimizer(self, policy: Policy, shape: tuple[int, ...]) -> torch.optim.Optimizer:
        """Return Adam, with a group for each kind of parameters.

        Args:
            policy: what is fitted.
            shape: of a sample.

        Raises:
            ValueError: if the policy has nothing to learn.
        """
        network = self.network_rate or (0.03 if len(shape) == 1 else 0.007)
        relative = {"plan": 1.0, "network": network, "picture": self.picture_rate}
        groups = [
            {"params": learned, "rate": relative[kind], "delay": kind != "plan"}
            for kind, group in policy.parameter_groups().items()
            if (learned := [p for p in group if p.requires_grad])
        ]
        if not groups:
            raise ValueError("policy has nothing to learn")
        for group in groups:
            group["delay"] = self.settle * self.iterations if group["delay"] else 0.0
        return torch.optim.Adam(groups, lr=self.rate(policy))


def rate_at(step: int, iterations: int, lr: float, warmup: float = 0.0) -> float:
    """Return the learning rate of a step: a straight line up to ``lr`` during ``warmup`` steps,
    times a cosine that falls to zero after ``iterations``.
    """
    rising = (step + 1) / max(1.0, warmup)
    return min(1.0, rising) * lr * (1 + math.cos(math.pi * step / iterations)) / 2


def descend(
    optimizer: torch.optim.Optimizer,
    objective: Callable[[int], Tensor],
    *,
    iterations: int,
    lr: float,
    warmup: float = 0.0,
    clip: float = math.inf,
    relative: bool = False,
    first: int = 0,
) -> Iterator[tuple[int, float]]:
    """Minimise an objective along a rising line and a falling cosine (:func:`rate_at`).

    A group of the optimizer may have "rate", a factor of its learning rate, and "delay", the number
    of steps that it waits. Nothing else gets a gradient, whether its owner has frozen it or not.

    Args:
        optimizer: of what is learned.
        objective: returns the loss of a step, a number.
        iterations: number of steps.
        lr: largest learning rate.
        warmup: number of steps in which it rises.
        clip: largest norm of the gradient.
        relative: whether to divide a loss by its own value.
        first: number of steps that were taken before.

    Yields:
        The number of steps taken so far, and the loss of the latest.

    Raises:
        FloatingPointError: if a loss or its gradient is not finite; that step is not taken.
    """
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, iterations):
        for group in optimizer.param_groups:
            waits = step < group.get("delay", 0)
            own = 0.0 if waits else group.get("rate", 1.0)
            group["lr"] = own * rate_at(step, iterations, lr, warmup)
        optimizer.zero_grad(set_to_none=True)
        loss = objective(step)
        scaled = loss / loss.detach().clamp_min(1e-30) if relative else loss
        scaled.backward(inputs=learned)
        norm = nn.utils.clip_grad_norm_(learned, clip)
        require_finite(step, loss, norm)
        optimizer.step()
        yield step + 1, loss.item()


def require_finite(step: int, *values: Tensor) -> None:
    """Pass if the loss of a step and the norm of its gradient are numbers.

    Raises:
        FloatingPointError: if they are not.
    """
    if not all(bool(torch.isfinite(value)) for value in values):
        raise FloatingPointError(f"the loss or its gradient is not finite at iteration {step + 1}")
